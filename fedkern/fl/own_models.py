"""A client's own models: what it keeps of those that it trains, and what it predicts with them.

It is the same wherever the client is: in this process (`fedkern.fl.simulate`) or elsewhere
(`fedkern.integrations.flower`).
"""

from __future__ import annotations

from contextlib import ExitStack

from torch import Tensor

from .client import Client
from .evaluation import predict
from .flat import FlatModel, State
from .methods import Method
from .training import LocalWork

# Of a client's models, where clients keep theirs: the model's buffers (without values), and the
# parameters that the method leaves with the clients (without buffers).
BUFFERS, PRIVATE = "buffers", "private"


def own_state(client: Client, shared: State, private: Tensor | None) -> State:
    """The global state, but for the buffers and the parameters that the client has of its own.

    Args:
        client: whose.
        shared: the global state.
        private: `Method.private`.
    """
    values, buffers = shared
    if BUFFERS in client.models:
        buffers = client.models[BUFFERS].buffers
    if private is not None and PRIVATE in client.models:
        values = values.index_copy(0, private, client.models[PRIVATE].values)
    return State(values, buffers)


def start_of(client: Client, work: LocalWork, shared: State, private: Tensor | None) -> State:
    """What a client's work starts from, see `own_state`."""
    own = own_state(client, shared, private)
    return own if work.keeps is None else client.models.get(work.keeps, own)


def kept_of(
    work: LocalWork, state: State, buffers: str, private: Tensor | None
) -> dict[str, State]:
    """What a client keeps, by name, of a state that it has trained.

    Args:
        work: what it did.
        state: what came of it.
        buffers: `RunConfig.buffers`.
        private: `Method.private`.
    """
    if work.keeps is not None:
        return {work.keeps: state}
    kept = {}
    if buffers == "local":
        kept[BUFFERS] = State(state.values[:0], state.buffers)
    if private is not None:
        kept[PRIVATE] = State(state.values[private], [])
    return kept


def have_own_models(method: Method, model: FlatModel, buffers: str) -> bool:
    """Whether clients may predict with others than the global model; `RunConfig.buffers`."""
    return method.personalises or (buffers == "local" and bool(model.buffers))


def personal_logits(
    method: Method, model: FlatModel, client: Client, shared: Tensor, private: Tensor | None
) -> Tensor:
    """The client's own model on its local test data.

    Args:
        method: makes the model the client's own.
        model: holds the global state.
        client: whose.
        shared: the global model's logits, which are the client's, too, if it has no own model.
        private: `Method.private`.
    """
    own = own_state(client, model.state, private)
    personal = method.personal_model(model, client)
    is_global = own.values is model.values and own.buffers is model.buffers
    if len(shared) == 0 or (is_global and personal is None):
        return shared
    with ExitStack() as stack:
        if not is_global:
            stack.enter_context(model.holding(own))
        if personal is not None:
            stack.enter_context(personal)
        return predict(model.module, client.dataset.x_test, client.test_indices)
