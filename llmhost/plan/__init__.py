"""The plan: the resolved, frozen answer to "what runs where with which flags"."""

from llmhost.plan.types import (
    EnginePlan as EnginePlan,
)
from llmhost.plan.types import (
    GatewayPlan as GatewayPlan,
)
from llmhost.plan.types import (
    Plan as Plan,
)
from llmhost.plan.types import (
    ProgramPlan as ProgramPlan,
)
from llmhost.plan.types import (
    ServicePlan as ServicePlan,
)
