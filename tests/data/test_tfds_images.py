"""A data set shaped like TFDS's imagenet2012, prepared and read here without TensorFlow."""

import importlib
import json
import pickle
import shutil
import sys
import textwrap

import numpy as np
import pytest

from lawa_jax.data import imagenet, images
from lawa_jax.data.loader import eval_batches, train_batches
from lawa_jax.data.tfds_images import TfdsImages, find_builder
from lawa_jax.errors import CorruptDataError, DataNotFoundError, MissingDependencyError

# TFDS wants a builder to live in a module of a package.
BUILDER = """
    import io
    import tensorflow_datasets as tfds

    with tfds.core.registered.skip_registration():
        class Imagenet2012(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("5.1.0")
            FILES = {}

            def _info(self):
                return self.dataset_info_from_configs(
                    features=tfds.features.FeaturesDict(
                        {
                            "image": tfds.features.Image(encoding_format="jpeg"),
                            "label": tfds.features.ClassLabel(names=["n01", "n02", "n03"]),
                            "file_name": tfds.features.Text(),
                        }
                    )
                )

            def _split_generators(self, dl_manager):
                return {name: self._generate_examples(name) for name in self.FILES}

            def _generate_examples(self, split):
                for index, data in enumerate(self.FILES[split]):
                    name = f"{split}_{index}.JPEG"
                    image = io.BytesIO(data)
                    yield name, {"image": image, "label": index % 3, "file_name": name}
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, encoded):
    """A TFDS directory, and the files that went into it by name."""
    root = tmp_path_factory.mktemp("tfds")
    package = root / "code" / "tiny_tfds_builders"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "builder.py").write_text(textwrap.dedent(BUILDER))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(root / "code"))
        builder_class = importlib.import_module("tiny_tfds_builders.builder").Imagenet2012
        files = {
            split: [encoded(20 + i, 30, seed=i + seed) for i in range(count)]
            for split, count, seed in (("train", 12, 0), ("validation", 5, 50))
        }
        # The known stray of ImageNet: a PNG with the name of a JPEG.
        files["train"][3] = encoded(33, 44, "RGBA", "PNG")
        builder_class.FILES = files
        data_dir = root / "data"
        builder_class(data_dir=str(data_dir), file_format="array_record").download_and_prepare()
    return data_dir, files


def test_no_tensorflow_is_needed(prepared):
    assert "tensorflow" not in sys.modules


def test_files_come_back_as_they_were(prepared):
    data_dir, files = prepared
    for split, expected in files.items():
        source = TfdsImages(find_builder(data_dir), split)
        assert len(source) == len(expected)
        assert source.classes == ("n01", "n02", "n03")
        seen = {source.name(i).split()[-1]: source.read(i) for i in range(len(source))}
        assert seen == {f"{split}_{i}.JPEG": (data, i % 3) for i, data in enumerate(expected)}
        assert f"{data_dir}/imagenet2012/5.1.0 {split}[1]" in source.name(1)
        copy = pickle.loads(pickle.dumps(source))
        assert [copy.read(i) for i in range(len(copy))] == [
            source.read(i) for i in range(len(source))
        ]


def test_the_way_into_batches(prepared):
    data_dir, _ = prepared
    data = imagenet.find(data_dir, image_size=16, dtype="uint8")
    assert data.num_classes == 3
    [batch] = eval_batches(data.validation, batch_size=5)
    split = TfdsImages(find_builder(data_dir), "validation")
    for index in range(5):
        pixels, label = split.read(index)
        np.testing.assert_array_equal(
            batch["image"][index], images.evaluation_pixels(pixels, size=16, resize=18)
        )
        assert batch["label"][index] == label
    batches = train_batches(data.train, batch_size=4, seed=0, epoch=1, transform=data.augment)
    labels = np.concatenate([batch["label"] for batch in batches])
    assert np.bincount(labels).tolist() == [4, 4, 4]


def test_where_it_is_looked_for(prepared, tmp_path):
    data_dir, _ = prepared
    version = data_dir / "imagenet2012" / "5.1.0"
    assert find_builder(data_dir) == version
    assert find_builder(data_dir / "imagenet2012") == version
    assert find_builder(version) == version
    assert find_builder(tmp_path) is None
    for name in ("5.0.0", "5.1.0", "10.0.0", "incomplete.5.2.0"):
        folder = tmp_path / "imagenet2012" / name
        folder.mkdir(parents=True)
        (folder / "dataset_info.json").touch()
    (tmp_path / "imagenet2012" / "11.0.0").mkdir()
    assert find_builder(tmp_path) == tmp_path / "imagenet2012" / "10.0.0"


def test_a_split_that_is_not_there(prepared):
    data_dir, _ = prepared
    with pytest.raises(
        DataNotFoundError, match=r"the split 'test'.*the splits \['train', 'validation'\]"
    ):
        TfdsImages(find_builder(data_dir), "test")


def test_files_without_random_access(prepared, tmp_path):
    data_dir, _ = prepared
    version = find_builder(data_dir)
    for file in ("dataset_info.json", "features.json", "label.labels.txt"):
        (tmp_path / file).write_bytes((version / file).read_bytes())
    info = json.loads((tmp_path / "dataset_info.json").read_text())
    info["fileFormat"] = "tfrecord"
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(
        DataNotFoundError, match=r"expected array_record files, found tfrecord.*--file_format=arr"
    ):
        imagenet.find(tmp_path)


@pytest.mark.parametrize("damage", ["missing", "truncated", "flipped", "description"])
def test_damage_is_one_kind_of_error(prepared, tmp_path, damage):
    directory = tmp_path / "copy"
    shutil.copytree(find_builder(prepared[0]), directory)
    [records] = directory.glob("*-train.array_record*")
    content = bytearray(records.read_bytes())
    if damage == "missing":
        records.unlink()
    elif damage == "truncated":
        records.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        # Nothing that is found is the data: checksums are the format's own.
        content[len(content) // 4 :: 64] = bytes(b ^ 1 for b in content[len(content) // 4 :: 64])
        records.write_bytes(content)
    else:
        (directory / "dataset_info.json").write_text("{")
    with pytest.raises(CorruptDataError, match=r"cannot be (opened|read)"):  # noqa: PT012
        images = TfdsImages(directory, "train")
        for index in range(len(images)):
            assert "train" in images.name(index)
            images.read(index)


@pytest.mark.parametrize(
    "module",
    ["tensorflow_datasets", "array_record.python.array_record_data_source", "importlib_resources"],
)
def test_tfds_missing(prepared, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match=rf"{module}.*pip install 'lawa-jax\[tfds\]'"):
        imagenet.find(prepared[0])
