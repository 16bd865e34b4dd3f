"""The store of finished responses: bounded in number and in bytes."""

from inferplane.server.responses.store import ResponseStore, Stored


class TestStore:
    def put(self, store: ResponseStore, *names: str, filler: int = 0) -> None:
        for name in names:
            store.put("t", Stored({"id": name, "x": "y" * filler}))

    def test_forgets_what_nobody_asked_for(self) -> None:
        store = ResponseStore(most=3)
        self.put(store, "a", "b", "c")
        store.get("t", "a", "id")
        self.put(store, "d")
        assert [store.has("t", name) for name in "abcd"] == [True, False, True, True]

    def test_bytes_are_bounded(self) -> None:
        store = ResponseStore(most_bytes=10_000)
        for i in range(50):
            self.put(store, f"r{i}", filler=3000)
            assert store._bytes <= 10_000
        assert len(store) == 3
        self.put(store, "huge", filler=20_000)
        assert len(store) == 0 and store._bytes == 0

    def test_a_later_state_replaces_an_earlier_one(self) -> None:
        store = ResponseStore()
        self.put(store, "a", "a")
        assert len(store) == 1
        store.delete("t", "a", "id")
        assert store._bytes == 0
