from flwr.clientapp import ClientApp
from task import evaluate_fn, train_fn

app = ClientApp()
app.train()(train_fn)
app.evaluate()(evaluate_fn)
