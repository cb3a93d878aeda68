"""Plan training for a time and memory budget, and predict its result."""

from wholegpt.planning.machine import Machine
from wholegpt.planning.plan import ENGLISH_PROSE, Budget, Plan, Text
from wholegpt.planning.planner import make_plan, measure_difficulty, plan_elsewhere
from wholegpt.planning.scaling import ENGLISH

__all__ = [
    "ENGLISH",
    "ENGLISH_PROSE",
    "Budget",
    "Machine",
    "Plan",
    "Text",
    "make_plan",
    "measure_difficulty",
    "plan_elsewhere",
]
