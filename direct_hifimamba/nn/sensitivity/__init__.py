"""Trained refinement of coil sensitivities, for any model of DIRECT: ``additional_models.sensitivity_model``."""
