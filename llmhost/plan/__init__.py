"""The plan: the resolved, frozen answer to "what runs where with which flags"."""

from llmhost.plan.types import (
    EnginePlan as EnginePlan,
    GatewayPlan as GatewayPlan,
    Plan as Plan,
    ProgramPlan as ProgramPlan,
    ServicePlan as ServicePlan,
)
