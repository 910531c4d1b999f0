"""Final answers: taking them out of a solution, and deciding whether two are equal.

``extract_answer`` finds the text, ``answer_classes`` and ``is_correct`` compare. Equality is decided exactly
where it is certain, by :class:`MathPool` (math-verify in killable child processes) elsewhere, and is
``UNDECIDED`` where nobody can tell: undecided answers never share a class and are never right or wrong.
"""

from wcse.answers.classes import answer_classes
from wcse.answers.compare import Judge, Verdict, compare, is_correct
from wcse.answers.extract import extract_answer
from wcse.answers.pool import MathPool

__all__ = ["Judge", "MathPool", "Verdict", "answer_classes", "compare", "extract_answer", "is_correct"]
