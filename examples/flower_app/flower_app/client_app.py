"""What a node does."""

from flwr.app import Context
from flwr.clientapp import ClientApp

from fedkern import fl
from fedkern.integrations.flower import register

from . import task


def own_client(context: Context) -> fl.Client:
    """The client that this node is: ``--node-config "partition-id=3"`` says so."""
    config = task.settings(context.run_config)
    number = int(context.node_config["partition-id"])
    if not 0 <= number < config.clients:
        raise fl.ConfigError(
            f"partition-id: wanted one below clients = {config.clients}, got {number}"
        )
    return task.clients(config)[number]


app = ClientApp()
register(app, lambda context: task.new_model(task.settings(context.run_config)), own_client)
