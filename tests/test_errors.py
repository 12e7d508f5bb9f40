from __future__ import annotations

import pytest

import cnndeploy
from cnndeploy import errors

PUBLIC = (
    "Artifact BenchmarkReport BudgetReport Classifier CnndeployError Compressed EquivalenceReport Evaluation Imported "
    "Prediction Preprocessing Quantized Reference Run RuntimeOptions TuneReport allow_source bench compress evaluate "
    "export import_model load preprocessing_of quantize read_image serve train tune verify verify_budget"
)


def test_every_public_name_is_importable_and_listed() -> None:
    assert dir(cnndeploy) == cnndeploy.__all__ == PUBLIC.split()
    for name in cnndeploy.__all__:
        assert getattr(cnndeploy, name).__name__ == name


def test_every_error_is_in_the_tree_that_the_docstring_draws() -> None:
    classes = [value for value in vars(errors).values() if isinstance(value, type)]
    defined = {each.__name__ for each in classes if each.__module__ == errors.__name__}
    assert len(defined) > 10
    for name in defined:
        assert issubclass(getattr(errors, name), errors.CnndeployError)
        assert name in (errors.__doc__ or "")


def test_unknown_name_suggests_the_nearest() -> None:
    assert "Did you mean 'onnxruntime'?" in str(
        errors.UnknownNameError("runtime", "onnxrt", ["eager", "onnxruntime"])
    )


@pytest.mark.parametrize("name", ["resnet18", "mobilenet", "densenet", "", "x"])
def test_a_name_that_is_no_slip_gets_no_far_fetched_suggestion(name: str) -> None:
    known = ["alexnet", "googlenet", "lenet", "nin", "vgg11"]
    message = str(errors.UnknownNameError("architecture", name, known))
    assert message == f"Unknown architecture {name!r}. Known are: alexnet, googlenet, lenet, nin, vgg11."


@pytest.mark.parametrize(("slip", "meant"), [("lenett", "lenet"), ("LeNet", "lenet"), ("vgg16", "vgg11")])
def test_a_slip_gets_one(slip: str, meant: str) -> None:
    assert errors.nearest(slip, ["alexnet", "googlenet", "lenet", "nin", "vgg11"]) == meant


@pytest.mark.parametrize(
    ("package", "expected"),
    [
        ("onnxruntime", ["cnndeploy[cpu]", "cnndeploy[gpu]"]),
        ("torch", ["cnndeploy[torch]"]),
        ("foo", ["foo"]),
    ],
)
def test_missing_dependency_names_the_commands(package: str, expected: list[str]) -> None:
    message = str(errors.MissingDependencyError(package))
    assert all(f"pip install '{name}'" in message or f"pip install {name}" in message for name in expected)
