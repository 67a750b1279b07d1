"""Whether to use the student, in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from inranker.evaluate.comparison import RELIABLE, Agreement, Figure


@dataclass(frozen=True)
class Verdict:
    """`use` is `student`, `fusion`, `bm25` or `undecided`; `headline` says it in words, `reasons` say why."""

    use: str
    headline: str
    reasons: list[str]


_HEADLINES = {
    "student": "Use it: rerank BM25's results with the student.",
    "fusion": "Use it together with BM25: the weighted fusion of both is what was shown to be better.",
    "bm25": "Keep BM25.",
    "undecided": "Undecided: nothing here shows that the student is better than BM25, or worse.",
}


def judged_verdict(figures: Mapping[str, Figure], student: str, fusion: str, baseline: str, metric: str) -> Verdict:
    """The verdict from human judgements: use what is reliably better than the baseline.

    Args:
        figures: system -> its figure of `metric`.
        student: name of the student.
        fusion: name of the fusion of both.
        baseline: name of the first stage.
        metric: what was measured, for the words.
    """
    base = figures[baseline]

    def said(system: str) -> str:
        figure = figures[system]
        p = "" if figure.p is None else f", p = {figure.p:.3g}"
        return f"{system}: {metric} {figure.mean:.3f} against {base.mean:.3f} of {baseline}{p}: {figure.versus(base)}"

    reasons = [said(name) for name in (student, fusion) if name in figures]
    better = [name for name in (student, fusion) if name in figures and figures[name].versus(base) == "better"]
    if not better:
        reasons.append("more judged queries, more synthetic queries or a better teacher might change that")
        return Verdict("bm25", _HEADLINES["bm25"] + " No reliable gain was shown.", reasons)
    use = max(better, key=lambda name: figures[name].mean)
    kind = "student" if use == student else "fusion"
    return Verdict(kind, _HEADLINES[kind], reasons)


def unjudged_verdict(
    found: Mapping[str, Figure], agreement: Mapping[str, Agreement], student: str, teacher: str, baseline: str
) -> Verdict:
    """The verdict without human judgements, from synthetic queries of documents that training never saw.

    The student is worth using if its teacher finds the source documents no worse than the baseline does, if the
    student's order is nearer to the teacher's than the baseline's is, and if it finds the source documents no worse. No
    worse is: not reliably; but a teacher that is below the baseline at all is no reason to follow it.

    Args:
        found: system -> reciprocal rank of the source document.
        agreement: system -> agreement with the teacher.
        student: name of the student.
        teacher: name of its teacher.
        baseline: name of the first stage.
    """
    base = found[baseline]

    def worse(system: str) -> bool:
        return found[system].versus(base) == "worse"

    reasons = [
        f"{name} ranks the document that a query was written for at a mean reciprocal rank of {found[name].mean:.3f}, "
        f"{baseline} at {base.mean:.3f}: {found[name].versus(base)}"
        for name in (teacher, student)
    ]
    nearer = agreement[student].tau > agreement[baseline].tau
    reasons.append(
        f"the student's order agrees with its teacher's at a Kendall tau of {agreement[student].tau:.2f} (the ten best "
        f"have {100 * agreement[student].overlap:.0f}% in common), {baseline}'s at {agreement[baseline].tau:.2f}"
    )
    if worse(teacher):
        return Verdict("bm25", _HEADLINES["bm25"] + " The teacher itself is worse here than BM25.", reasons)
    if not nearer:
        return Verdict("bm25", _HEADLINES["bm25"] + " The student did not learn its teacher's order.", reasons)
    if worse(student):
        return Verdict("bm25", _HEADLINES["bm25"] + " The student loses documents that BM25 finds.", reasons)
    reasons.append("synthetic queries favour BM25, whose words they share: read the examples below before you decide")
    if found[teacher].mean < base.mean:
        reasons.append("some fifty judged queries of your own, or more held-out documents, would tell")
        return Verdict("undecided", _HEADLINES["undecided"], reasons)
    return Verdict("student", _HEADLINES["student"], reasons)


def teacher_warning(collection: str, teacher: Figure, baseline: Figure, metric: str) -> str | None:
    """A warning in words where the teacher is below BM25; None where it is not."""
    if teacher.mean >= baseline.mean:
        return None
    sure = "reliably" if teacher.p is not None and teacher.p < RELIABLE else "though not reliably"
    return (
        f"On {collection} the teacher is worse than BM25 ({metric} {teacher.mean:.3f} against {baseline.mean:.3f}, "
        f"{sure}): a student that learns from it cannot be expected to beat BM25 there. Choose another teacher, or "
        "keep BM25."
    )
