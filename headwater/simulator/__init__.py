"""A provider simulator: a real HTTP server with OpenAI's interface, deterministic answers, faults, and a bill."""

from headwater.simulator.config import AnswerRule, FaultRule, SimulatorConfig, load_answers, load_prices
from headwater.simulator.process import SimulatorProcess
from headwater.simulator.server import create_simulator, serve

__all__ = [
    "AnswerRule",
    "FaultRule",
    "SimulatorConfig",
    "SimulatorProcess",
    "create_simulator",
    "load_answers",
    "load_prices",
    "serve",
]
