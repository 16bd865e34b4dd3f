"""The grammar engines by name; each is imported when the first grammar of its kind comes."""

from inferplane.grammar.contract import LLGUIDANCE, XGRAMMAR, Engine, GrammarError, Vocabulary


def open_engine(name: str, vocabulary: Vocabulary, keep: bool = True) -> Engine:
    """`keep`: remember compiled grammars. GrammarError if there is no such engine."""
    if name == LLGUIDANCE:
        from inferplane.grammar.with_llguidance import LLGuidance

        return LLGuidance(vocabulary, keep)
    if name == XGRAMMAR:
        from inferplane.grammar.with_xgrammar import XGrammar

        return XGrammar(vocabulary, keep)
    raise GrammarError(f"there is no grammar engine {name!r}")
