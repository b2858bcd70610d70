"""Node functions of the graphs and what they share: context, state, schemas, the call of a model."""
