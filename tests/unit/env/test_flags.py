"""Reading flags from source trees shaped like vLLM's; the real one is compared in the end-to-end tests."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from llmhost.env.flags import FlagFacts, read_flags
from llmhost.errors import EngineError
from llmhost.facts import VllmFlag

NEW = {
    "vllm/__init__.py": "raise SystemExit('imported')",
    "vllm/config/__init__.py": """
        from vllm.config.model import ModelConfig
        from .cache import CacheConfig
    """,
    "vllm/config/utils.py": "def config(cls): return cls",
    "vllm/config/types.py": """
        from typing import Literal
        Dtype = Literal["auto", "half"]
        class Overrides(dict[str, int]): ...
    """,
    "vllm/config/model.py": """
        from typing import Annotated, ClassVar, Optional, Union
        from .types import Dtype, Overrides
        from vllm.config.utils import config
        @config
        class PoolerConfig: ...
        @config
        class ModelConfig:
            known: ClassVar[bool] = True
            model: str = "x"
            served_model_name: str | list[str] | None = None
            dtype: Dtype = "auto"
            dtypes: list[Dtype] | None = None
            enforce_eager: bool = False
            maybe: bool | None = None
            older: Optional[bool] = None
            either: Union[bool, int] = 1
            noted: Annotated[bool, "why"] = False
            quoted: "bool" = False
            token: bool | str | None = None
            pooler_config: PoolerConfig | bool | None = None
            overrides: Overrides | bool = False
            shape: tuple[int, int] = (1, 2)
            names: set[str] | None = None
    """,
    "vllm/config/cache.py": """
        from .utils import config
        @config
        class CacheConfig:
            cache_dtype: str = "auto"
            enable_prefix_caching: bool = True
            backend: str = "x"
    """,
    "vllm/engine/arg_utils.py": """
        import argparse
        from vllm.config import CacheConfig, ModelConfig
        class EngineArgs:
            @staticmethod
            def add_cli_args(parser):
                model_kwargs = get_kwargs(ModelConfig)
                group = parser.add_argument_group(title="ModelConfig", description=ModelConfig.__doc__)
                if not "serve" in sys.argv:
                    group.add_argument("--model", **model_kwargs["model"])
                for_all = "served_model_name dtype dtypes"
                group.add_argument("--served-model-name", **model_kwargs["served_model_name"])
                group.add_argument("--dtype", "-d", **model_kwargs["dtype"])
                group.add_argument("--dtypes", **model_kwargs["dtypes"])
                group.add_argument("--enforce-eager", **model_kwargs["enforce_eager"])
                group.add_argument("--maybe", **model_kwargs["maybe"])
                group.add_argument("--older", **model_kwargs["older"])
                group.add_argument("--either", **model_kwargs["either"])
                group.add_argument("--noted", **model_kwargs["noted"])
                group.add_argument("--quoted", **model_kwargs["quoted"])
                group.add_argument("--token", **model_kwargs["token"])
                group.add_argument("--pooler-config", **model_kwargs["pooler_config"])
                group.add_argument("--shape", **model_kwargs["shape"])
                group.add_argument("--names", **model_kwargs["names"])
                cache_kwargs = get_kwargs(CacheConfig)
                group.add_argument("--kv-cache-dtype", "--kv-dtype", dest="d", **cache_kwargs["cache_dtype"])
                group.add_argument("--prefix", **{**cache_kwargs["enable_prefix_caching"], "default": None})
                backend_kwargs = cache_kwargs["backend"]
                backend_kwargs["type"] = lambda s: s.lower()
                group.add_argument("--backend", **backend_kwargs)
                parser.add_argument("--disable-log-stats", action="store_true", help="--not-a-flag")
                return parser
        class AsyncEngineArgs(EngineArgs):
            @staticmethod
            def add_cli_args(parser, async_args_only=False):
                if not async_args_only:
                    parser = EngineArgs.add_cli_args(parser)
                parser.add_argument("--log-requests", action=argparse.BooleanOptionalAction, default=False)
                return parser
    """,
    "vllm/entrypoints/launchers/cli_args.py": """
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.config.utils import config
        @config
        class BaseFrontendArgs:
            lora_modules: list[str] | None = None
            tool_call_parser: str | None = None
            enable_auto_tool_choice: bool = False
            @classmethod
            def _customize_cli_kwargs(cls, kwargs):
                kwargs["lora_modules"]["type"] = str
                return kwargs
            @classmethod
            def add_cli_args(cls, parser):
                from vllm.engine.arg_utils import get_kwargs
                kwargs = get_kwargs(cls)
                kwargs = cls._customize_cli_kwargs(kwargs)
                group = parser.add_argument_group(title=cls.__name__)
                for key, value in kwargs.items():
                    group.add_argument(f"--{key.replace('_', '-')}", **value)
                return parser
        @config
        class FrontendArgs(BaseFrontendArgs):
            port: int = 8000
            allowed_origins: list[str] = []
            middleware: list[str] = []
            @classmethod
            def _customize_cli_kwargs(cls, kwargs):
                kwargs = super()._customize_cli_kwargs(kwargs)
                del kwargs["allowed_origins"]["nargs"]
                kwargs["middleware"]["action"] = "append"
                if "nargs" in kwargs["middleware"]:
                    del kwargs["middleware"]["nargs"]
                return kwargs
        def make_arg_parser(parser):
            parser.add_argument("model_tag", nargs="?")
            parser.add_argument("--headless", action="store_true")
            parser = FrontendArgs.add_cli_args(parser)
            parser = AsyncEngineArgs.add_cli_args(parser)
            return parser
    """,
    "vllm/tool_parsers/__init__.py": """
        _TOOL_PARSERS_TO_REGISTER = {"qwen3": ("f", "C"), "hermes": ("f", "C")}
    """,
    "vllm/reasoning/__init__.py": '_REASONING_PARSERS_TO_REGISTER = {"r1": ("f", "C")}',
}

OLD = {
    "vllm/engine/arg_utils.py": """
        class AsyncEngineArgs:
            @staticmethod
            def add_cli_args(parser):
                parser.add_argument("--model", type=str)
                parser.add_argument("--task", default="auto", choices=["auto", "embed"])
                parser.add_argument("--enforce-eager", action="store_true")
                parser.add_argument("--served-model-name", nargs="+", type=str)
                parser.add_argument("--hf-token", nargs="?", const=True)
                return parser
    """,
    "vllm/entrypoints/openai/cli_args.py": """
        from ...engine.arg_utils import AsyncEngineArgs
        def make_arg_parser(parser):
            parser.add_argument("--host", type=str)
            parser = AsyncEngineArgs.add_cli_args(parser)
            return parser
    """,
    "vllm/entrypoints/openai/tool_parsers/__init__.py": '_TOOL_PARSERS_TO_REGISTER = {"hermes": ("f", "C")}',
}


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    return root


@pytest.fixture
def new(tmp_path: Path) -> FlagFacts:
    return read_flags(tree(tmp_path, NEW))


def test_the_parser_wherever_it_stands(tmp_path: Path, new: FlagFacts) -> None:
    """0.32 has it in launchers, 0.33 in common; what is in it is read alike."""
    moved = {name.replace("/launchers/", "/common/"): text for name, text in NEW.items()}
    assert read_flags(tree(tmp_path / "moved", moved)) == new


@pytest.mark.parametrize(
    "flag",
    [
        VllmFlag("model", boolean=False),
        VllmFlag("served_model_name", boolean=False, multiple=True),
        VllmFlag("dtype", boolean=False),
        VllmFlag("dtypes", boolean=False, multiple=True),
        VllmFlag("enforce_eager", boolean=True, negatable=True),
        VllmFlag("maybe", boolean=True, negatable=True),
        VllmFlag("older", boolean=True, negatable=True),
        VllmFlag("either", boolean=True, negatable=True),
        VllmFlag("noted", boolean=True, negatable=True),
        VllmFlag("quoted", boolean=True, negatable=True),
        VllmFlag("token", boolean=False, optional_value=True),
        VllmFlag("pooler_config", boolean=False),
        VllmFlag("shape", boolean=False, multiple=True),
        VllmFlag("names", boolean=False, multiple=True),
        VllmFlag("kv_cache_dtype", boolean=False),
        VllmFlag("kv_dtype", boolean=False),
        VllmFlag("prefix", boolean=True, negatable=True),
        VllmFlag("backend", boolean=False),
        VllmFlag("disable_log_stats", boolean=True),
        VllmFlag("log_requests", boolean=True, negatable=True),
        VllmFlag("headless", boolean=True),
        VllmFlag("lora_modules", boolean=False, multiple=True),
        VllmFlag("enable_auto_tool_choice", boolean=True, negatable=True),
        VllmFlag("tool_call_parser", boolean=False),
        VllmFlag("port", boolean=False),
        VllmFlag("allowed_origins", boolean=False),
        VllmFlag("middleware", boolean=False, repeated=True),
    ],
    ids=lambda flag: flag.name,
)
def test_each_form(new: FlagFacts, flag: VllmFlag) -> None:
    assert new.flags[flag.name] == flag


def test_nothing_else_is_a_flag(new: FlagFacts) -> None:
    assert len(new.flags) == 27
    assert list(new.flags) == sorted(new.flags)


def test_parsers(new: FlagFacts) -> None:
    assert new.tool_call_parsers == ("hermes", "qwen3")
    assert new.reasoning_parsers == ("r1",)


def test_older_layout(tmp_path: Path) -> None:
    facts = read_flags(tree(tmp_path, OLD))
    assert dict(facts.flags) == {
        "enforce_eager": VllmFlag("enforce_eager", boolean=True),
        "hf_token": VllmFlag("hf_token", boolean=False, optional_value=True),
        "host": VllmFlag("host", boolean=False),
        "model": VllmFlag("model", boolean=False),
        "served_model_name": VllmFlag("served_model_name", boolean=False, multiple=True),
        "task": VllmFlag("task", boolean=False),
    }
    assert (facts.tool_call_parsers, facts.reasoning_parsers) == (("hermes",), ())


@pytest.mark.parametrize("files", [{}, {"vllm/entrypoints/openai/cli_args.py": "def make_arg_parser(:"}])
def test_layout_that_cannot_be_read(tmp_path: Path, files: dict[str, str]) -> None:
    with pytest.raises(EngineError, match="cannot read the flags"):
        read_flags(tree(tmp_path, files))


def test_imports_in_a_circle_end(tmp_path: Path) -> None:
    files = {
        "vllm/a.py": "from .b import X",
        "vllm/b.py": "from .a import X",
        "vllm/entrypoints/openai/cli_args.py": """
            from vllm.a import X
            class Args:
                model: X = 1
                @classmethod
                def add_cli_args(cls, parser):
                    kwargs = get_kwargs(cls)
                    parser.add_argument("--model", **kwargs["model"])
            def make_arg_parser(parser):
                parser = Args.add_cli_args(parser)
        """,
    }
    assert read_flags(tree(tmp_path, files)).flags["model"] == VllmFlag("model", boolean=False)
