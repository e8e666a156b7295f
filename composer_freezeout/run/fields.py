"""Types of a configuration's values, and what all its sections have in common."""

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

__all__ = ['Classes', 'Count', 'Duration', 'Interval', 'MicrobatchSize', 'Natural', 'RunName', 'Section', 'Size']


def _duration(value: str) -> str:
    if not re.fullmatch(r'0*[1-9]\d*(ep|ba|sp|tok)', value):
        raise ValueError(
            "must be a whole number above 0 with a unit: '20ep' (epochs), '500ba' (batches), 'sp' or 'tok'"
        )
    return value


def _interval(value: str) -> str:
    if re.fullmatch(r'0?\.\d*[1-9]\d*dur|1(\.0*)?dur', value):
        return value
    try:
        return _duration(value)
    except ValueError:
        raise ValueError("must be like '1ep' (epochs), '100ba' (batches), or '0.1dur' (share of the run)") from None


def _time_string(value: object) -> object:
    # A bare number would be taken as epochs by Composer; which unit is meant should be readable in the file.
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        raise ValueError(f"needs a unit: '{value}ep' (epochs) or '{value}ba' (batches)")
    return value


def _size(value: str) -> str:
    if not re.fullmatch(r'0*[1-9]\d*(kb|mb|gb|tb)', value):
        raise ValueError("must be a whole number above 0 with a unit: '500mb', '200gb' or '1tb'")
    return value


def _microbatch_size(value: object) -> object:
    if value is None or value == 'auto' or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return value
    raise ValueError("must be a whole number above 0, 'auto' or null")


def _run_name(value: str) -> str:
    if not re.fullmatch(r'[A-Za-z0-9][A-Za-z0-9._-]*', value):
        raise ValueError("must consist of letters, digits, '.', '_' and '-': it names the output folder")
    return value


def _classes(value: object) -> object:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    match = re.fullmatch(r'(\d{1,9})-(\d{1,9})', value) if isinstance(value, str) else None
    if match is None or int(match[1]) > int(match[2]):
        raise ValueError("must be the index of a class, such as 3, or a range with both its ends, such as '80-99'")
    return value


Duration = Annotated[str, AfterValidator(_duration), BeforeValidator(_time_string)]
Interval = Annotated[str, AfterValidator(_interval), BeforeValidator(_time_string)]
Size = Annotated[str, AfterValidator(_size)]
MicrobatchSize = Annotated[Any, BeforeValidator(_microbatch_size)]
RunName = Annotated[str, AfterValidator(_run_name)]
Classes = Annotated[Any, BeforeValidator(_classes)]
Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]


class Section(BaseModel):
    """A mapping of a configuration: unknown keys and values of other types are refused."""

    model_config = ConfigDict(extra='forbid', strict=True, allow_inf_nan=False)
