"""The grammar engines by name; each is imported when the first grammar of its kind comes."""

from inferplane.grammar.contract import LLGUIDANCE, XGRAMMAR, Engine, GrammarError, Vocabulary


def open_engine(name: str, vocabulary: Vocabulary) -> Engine:
    """GrammarError if there is no such engine, or it is not installed."""
    if name == LLGUIDANCE:
        from inferplane.grammar.with_llguidance import LLGuidance

        return LLGuidance(vocabulary)
    if name == XGRAMMAR:
        from inferplane.grammar.with_xgrammar import XGrammar

        return XGrammar(vocabulary)
    raise GrammarError(f"there is no grammar engine {name!r}")
