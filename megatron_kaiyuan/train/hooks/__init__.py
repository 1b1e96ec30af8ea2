"""Everything of a run that is not the step: the form of a hook (`hook.py`), and all of them in order (`order.py`)."""
