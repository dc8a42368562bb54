"""A router of one's own: by language and by tenant, with a model for the rest.

A rule is a plain function of the task. It must depend on nothing else: no clock, no file that changes, no randomness,
so that a recorded log can be decided again with the same result (`headwater replay --verify`).
"""

from collections.abc import Mapping

from headwater import AgentRegistration, BaseAgent, HybridRouter, RoutingDecision, Task, TaskContext, Team

LANGUAGES = {"de": ("ich", "nicht", "bitte"), "fr": ("je", "pas", "merci"), "en": ("the", "not", "please")}


class Desk(BaseAgent):
    """One desk per language, made from one class."""

    def __init__(self, language: str) -> None:
        super().__init__()
        self.registration = AgentRegistration(  # type: ignore[misc]  # one registration an instance
            agent_id=f"desk-{language}", name=f"Desk {language}", description=f"Answers customers who write {language}."
        )

    async def execute(self, task: Task, context: TaskContext) -> str:
        """Answer."""
        return (await context.llm.complete(task.text, system=f"You are {self.agent_id}.")).text


class TenantRouter(HybridRouter):
    """Rules of each tenant's own before the rules for all."""

    def __init__(self, own: Mapping[str, str]) -> None:
        super().__init__([by_language])
        self._own = own

    def match(self, task: Task) -> RoutingDecision | None:
        """A tenant's own desk, else the rules; None asks a model."""
        if task.tenant_id in self._own:
            desk = self._own[task.tenant_id]
            return RoutingDecision(agent_id=desk, routed_by="rules", confidence=1.0, reasoning="the tenant's own desk")
        return super().match(task)


def by_language(task: Task) -> str | None:
    """The language whose common words stand in the text, if there is just one."""
    words = set(task.text.casefold().split())
    found = [language for language, common in LANGUAGES.items() if words & set(common)]
    return f"desk-{found[0]}" if len(found) == 1 else None


team = Team([Desk(language) for language in LANGUAGES], TenantRouter({"berlin-bikes": "desk-de"}))
