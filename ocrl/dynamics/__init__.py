"""How slots move: slots and actions to the next slots."""
