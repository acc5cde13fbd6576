"""An attentional recurrence that reads its own output: specification, backpropagation by hand, and their choice."""
