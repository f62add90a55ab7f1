"""Config keys, and the only code that reads a cfg."""

from .keys import add_deformable_detr_config, get_cfg, most_objects, set_things, things

__all__ = ["add_deformable_detr_config", "get_cfg", "most_objects", "set_things", "things"]
