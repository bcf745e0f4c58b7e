"""fedkern's methods on real clients: Flower's ServerApp and ClientApp (https://flower.ai).

The methods are those of `fedkern.fl`; here they are given Flower's messages instead of an engine.
On the server, our strategy::

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        strategy = MethodStrategy(fl.Floco(tau=10), new_model(), fl.RunConfig(clients=10))
        strategy.start(grid=grid)

On the client, one line::

    app = ClientApp()
    register(app, new_model, own_client)

where `new_model(context)` makes the model that the strategy has, and `own_client(context)` is the
`fedkern.fl.Client` whose data this node has. examples/flower_app
is a complete app. Weights travel as named arrays, with the names of the model's parameters and
buffers: only what is trained, of a simplex layer its endpoints. Samples, labels and class counts
stay where they are (docs/privacy.md).
"""

try:
    import flwr  # noqa: F401
except ImportError as error:
    raise ImportError(
        "fedkern.integrations.flower needs Flower, which needs Python 3.11: "
        "pip install 'fedkern[flower]'"
    ) from error

from .client import register
from .strategy import MethodStrategy

__all__ = ["MethodStrategy", "register"]
