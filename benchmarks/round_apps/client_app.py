"""The benchmark's ClientApp, confidential."""

from flwr.clientapp import ClientApp
from task import train

import confed.client

app = ClientApp(mods=[confed.client.confidential])
app.train()(train)
