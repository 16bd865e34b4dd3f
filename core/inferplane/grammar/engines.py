"""The grammar engines by name; each is imported when the first grammar of its kind comes."""

from inferplane.grammar.contract import LLGUIDANCE, XGRAMMAR, Engine, GrammarError, Vocabulary


def open_engine(name: str, vocabulary: Vocabulary, trial: bool = False) -> Engine:
    """`trial`: to try each grammar once, under stricter limits. GrammarError for other names."""
    if name == LLGUIDANCE:
        from inferplane.grammar.with_llguidance import LLGuidance

        return LLGuidance(vocabulary, trial)
    if name == XGRAMMAR:
        from inferplane.grammar.with_xgrammar import XGrammar

        return XGrammar(vocabulary, trial)
    raise GrammarError(f"there is no grammar engine {name!r}")
