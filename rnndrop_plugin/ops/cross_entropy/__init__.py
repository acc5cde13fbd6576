"""The output layer and its loss as one function, without keeping the logits."""
