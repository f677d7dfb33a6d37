"""What all sections of the cluster YAML have in common.

Knows none of them.
"""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Frozen values of one section; unknown keys and values of another kind are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)
