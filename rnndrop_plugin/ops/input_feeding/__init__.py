"""An attentional recurrence that reads its own output: its specification, a faster form, and the choice of one."""
