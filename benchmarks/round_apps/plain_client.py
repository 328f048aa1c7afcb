"""The benchmark's ClientApp in plain Flower."""

from flwr.clientapp import ClientApp
from task import train

app = ClientApp()
app.train()(train)
