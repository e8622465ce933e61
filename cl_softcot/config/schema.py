"""The JSON schema of an experiment, for editors."""

from __future__ import annotations

import inspect
from typing import Any

from cl_softcot import registry
from cl_softcot.config.experiment import Experiment
from cl_softcot.config.plugins import DiagnosticConfig, PlugIn, PluginConfig, ReasoningConfig, StrategyConfig, TaskConfig
from cl_softcot.config.settings import APPENDABLE


def json_schema() -> dict[str, Any]:
    """The JSON schema of an experiment's YAML, the settings of every known plug-in included, for editors.

    Put `# yaml-language-server: $schema=FILE` on the first line of a YAML file. Imports every plug-in.
    """
    schema = Experiment.model_json_schema()
    definitions = schema["$defs"]
    for model in (TaskConfig, ReasoningConfig, StrategyConfig, DiagnosticConfig):
        definitions[model.__name__] = _plugin_schema(model, definitions)
    text = {"type": "string"}
    definitions.pop("BaseModel", None)  # stood for settings
    plain = {"properties": {"name": text}, "required": ["name"], "additionalProperties": True}
    definitions["PluginConfig"] = {
        "anyOf": [text, {"type": "object", **plain}],
        "description": PluginConfig.__doc__,
    }
    definitions["ModelConfig"] = {"anyOf": [text, definitions["ModelConfig"]]}
    properties = schema["properties"]
    properties["base"] = {
        **text,
        "description": "another YAML file, relative to this one, that is read first",
    }
    for key in APPENDABLE:
        added = {"items": properties[key]["items"], "type": "array"}
        properties[f"{key}_add"] = {**added, "description": f"entries behind those of `{key}` in the base"}
    names = {"items": text, "type": "array", "minItems": 1}
    properties["methods_only"] = {**names, "description": "the methods to keep, by name (left out: all)"}
    schema.pop("required", None)  # a base may hold what is missing here
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _plugin_schema(model: type[PlugIn], definitions: dict[str, Any]) -> dict[str, Any]:
    fields = {name: info for name, info in model.model_fields.items() if name != "settings"}
    own = {
        name: {"type": "boolean" if info.annotation is bool else "string", "description": info.description}
        for name, info in fields.items()
    }
    required = [name for name, info in fields.items() if info.is_required()]
    own_class = {**own[model.selector], "pattern": ":"}
    names = registry.known(model.kind)
    choices: list[dict[str, Any]] = [
        {"enum": names},
        {
            "type": "object",
            "properties": {**own, model.selector: own_class},
            "required": required,
            "additionalProperties": True,
        },
    ]
    if model.selector == "name":
        choices.append(own_class)
    for name in names:
        settings = registry.find(model.kind, name).Settings
        prefix = f"{model.kind}-{name}-"
        described = settings.model_json_schema(ref_template=f"#/$defs/{prefix}{{model}}")
        definitions |= {prefix + key: value for key, value in described.pop("$defs", {}).items()}
        shared = {"type": "object", "additionalProperties": False}
        chosen = {model.selector: {"const": name}}
        options = described.get("properties", {})
        needed = [*required, *described.get("required", [])]
        choices.append({**shared, "properties": {**own, **chosen, **options}, "required": needed})
        if model.selector != "name":  # the label alone, where it is the name of the file too
            label = {"name": {"const": name}, **options}
            choices.append({**shared, "properties": label, "required": ["name", *described.get("required", [])]})
    return {"anyOf": choices, "description": inspect.getdoc(model)}
