"""Flows: which continuous path an optimizer follows, its integration, and how well they agree."""

from optax_igr.flows._central import CentralFlow, CentralFlowInfo, CentralFlowState
from optax_igr.flows.adam_central_flow import adam_central_flow, rmsprop_central_flow
from optax_igr.flows.adam_flow import adam_flow
from optax_igr.flows.central_flow import central_flow
from optax_igr.flows.convergence_order import ConvergenceOrder, convergence_order
from optax_igr.flows.edge_flow import EdgeFlow, EdgeFlowInfo, EdgeFlowState, edge_flow
from optax_igr.flows.flow_from_step import flow_from_step
from optax_igr.flows.gradient_flow import gradient_flow
from optax_igr.flows.integrate import integrate
from optax_igr.flows.minibatch_flow import minibatch_flow
from optax_igr.flows.modified_flow import modified_flow
from optax_igr.flows.optimizer_flow import optimizer_flow
from optax_igr.flows.principal_flow import principal_flow
from optax_igr.flows.two_player_flow import two_player_flow

__all__ = [
    "CentralFlow",
    "CentralFlowInfo",
    "CentralFlowState",
    "ConvergenceOrder",
    "EdgeFlow",
    "EdgeFlowInfo",
    "EdgeFlowState",
    "adam_central_flow",
    "adam_flow",
    "central_flow",
    "convergence_order",
    "edge_flow",
    "flow_from_step",
    "gradient_flow",
    "integrate",
    "minibatch_flow",
    "modified_flow",
    "optimizer_flow",
    "principal_flow",
    "rmsprop_central_flow",
    "two_player_flow",
]
