"""Files inside of archives are opened as if they lay on the disk."""

import concurrent.futures
import io
import os
import pickle
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
import pytest

from data_pipelines.media import encoding, video_io
from data_pipelines.sources import clips
from tests import data_sets

CONTENT = np.random.default_rng(0).bytes(50_000)


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """One file in every place that a clip's `file` can name; {kind: name}."""
    folder = tmp_path_factory.mktemp("archives")
    (folder / "a.mp4").write_bytes(CONTENT)
    for name, kind in (("stored", zipfile.ZIP_STORED), ("deflated", zipfile.ZIP_DEFLATED)):
        with zipfile.ZipFile(folder / f"{name}.zip", "w", kind) as archive:
            archive.writestr("deep/other.mp4", b"other")
            archive.writestr("deep/ä #b.mp4", CONTENT)
            archive.writestr("empty/", b"")
    content = (folder / "deflated.zip").read_bytes()
    for i, piece in enumerate((content[:100], content[100:30_000], content[30_000:])):
        (folder / f"split_part{'a' + 'abc'[i]}").write_bytes(piece)
    with tarfile.open(folder / "with#mark.tar", "w") as tar:
        for name, content in (("x.txt", b"text"), ("a.mp4", CONTENT), ("b.mp4", b"after")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    with tarfile.open(folder / "with#mark.tar") as tar:
        offset = tar.getmember("a.mp4").offset_data
    return {
        "plain": str(folder / "a.mp4"),
        "path": folder / "a.mp4",
        "url": f"file://{folder}/a.mp4",
        "stored": f"zip://deep/ä #b.mp4::{folder}/stored.zip",
        "placed": clips.addresses(f"{folder}/stored.zip")["deep/ä #b.mp4"],
        "deflated": f"zip://deep/ä #b.mp4::{folder}/deflated.zip",
        "file url": f"zip://deep/ä #b.mp4::file://{folder}/stored.zip",
        "pieces": f"zip://deep/ä #b.mp4::join:{folder}/split_part",
        "tar": f"tar:{folder}/with#mark.tar#{offset}+{len(CONTENT)}",
    }


KINDS = ("plain", "path", "url", "stored", "placed", "deflated", "file url", "pieces", "tar")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("whole_bytes", [64 << 20, 100])
def test_reads_and_seeks_like_a_file(kind, whole_bytes, archives, monkeypatch):
    monkeypatch.setattr(clips, "_WHOLE_BYTES", whole_bytes)  # 100: members are streamed
    rng = np.random.default_rng(1)
    with clips.open_binary(archives[kind]) as file:
        assert file.seekable() and file.read() == CONTENT
        assert file.seek(0, os.SEEK_END) == len(CONTENT) and file.read(3) == b""
        for begin in rng.integers(0, len(CONTENT), 20):
            file.seek(int(begin))
            size = int(rng.integers(0, 9000))
            assert file.read(size) == CONTENT[begin : begin + size]
            assert file.tell() == min(begin + size, len(CONTENT))
        file.seek(10)
        file.seek(-5, os.SEEK_CUR)
        assert file.read(4) == CONTENT[5:9]


def test_fsspec_opens_the_same_chained_names(archives):
    import fsspec

    with fsspec.open(archives["stored"]) as file:
        assert file.read() == CONTENT


def test_a_video_decodes_from_an_archive(tmp_path):
    frames, _ = data_sets.draw(0)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("v.mp4", encoding.encode_mp4(frames, 12))
    with clips.open_binary(f"zip://v.mp4::{tmp_path}/a.zip") as file:
        assert video_io.check(file.read()).num_frames == len(frames)


def test_many_threads_read_one_archive(archives):
    names = [archives["stored"], archives["deflated"], archives["pieces"]] * 8
    read = lambda name: clips.open_binary(name).read()
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        assert all(content == CONTENT for content in threads.map(read, names))


FORK = """
import os, sys
from data_pipelines.sources import clips

read = lambda: [clips.open_binary(name).read() for name in sys.argv[1:]]
wanted = read()
archive = next(a for key, a in clips._archives.items() if key[1] in sys.argv[1]).fp.fileno()
place = os.lseek(archive, 1, os.SEEK_SET)
if os.fork() == 0:  # shares the open file's position, were it not opened anew
    os._exit(0 if read() == wanted else 1)
assert os.wait()[1] == 0
assert os.lseek(archive, 0, os.SEEK_CUR) == place
assert read() == wanted
"""


def test_a_forked_child_reads_an_archive_for_itself(archives):
    names = [archives[kind] for kind in ("stored", "deflated", "pieces")]
    subprocess.run([sys.executable, "-c", FORK, *names], check=True)


def test_an_archive_that_is_replaced_is_read_anew(tmp_path):
    for content in (b"first", b"second"):
        with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
            archive.writestr("a.mp4", content)
        os.replace(tmp_path / "b.zip", tmp_path / "a.zip")
        assert clips.open_binary(f"zip://a.mp4::{tmp_path}/a.zip").read() == content


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("{0}/none.mp4", "No such file"),
        ("zip://none.mp4::{0}/stored.zip", "stored.zip has no member 'none.mp4'"),
        ("zip://a.mp4::{0}/none.zip", "No such file"),
        ("zip://a.mp4::{0}/a.mp4", "not a zip archive"),
        ("zip://a.mp4", "not of the form zip://MEMBER::ARCHIVE"),
        ("tar:{0}/with#mark.tar", "not of the form tar:ARCHIVE#OFFSET"),
        ("zip://a.mp4::join:{0}/none_part", "none_partaa is missing"),
    ],
)
def test_wrong_names_are_os_errors_that_say_why(name, words, archives):
    folder = os.path.dirname(archives["plain"])
    with pytest.raises(OSError, match=words):
        clips.open_binary(name.format(folder))


def test_damage_inside_of_an_archive_is_found(archives, tmp_path):
    content = bytearray((archives["path"].parent / "stored.zip").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "flipped.zip").write_bytes(content)
    with pytest.raises(OSError, match="Bad CRC-32"):
        clips.open_binary(f"zip://deep/ä #b.mp4::{tmp_path}/flipped.zip")
    (tmp_path / "cut.zip").write_bytes(content[: len(content) // 2])
    with pytest.raises(OSError, match="not a zip archive"):
        clips.open_binary(f"zip://deep/ä #b.mp4::{tmp_path}/cut.zip")


def test_a_lost_piece_is_named(archives, tmp_path):
    for letter in "ac":
        (tmp_path / f"x_parta{letter}").write_bytes(b"piece")
    with pytest.raises(OSError, match="x_partab is missing"):
        clips.addresses(f"join:{tmp_path}/x_part")


def test_addresses_are_of_the_files_of_an_archive(archives):
    archive = archives["stored"].partition("::")[2]
    assert list(clips.addresses(archive)) == ["deep/other.mp4", "deep/ä #b.mp4"]
    squeezed = clips.addresses(archives["deflated"].partition("::")[2])
    assert squeezed["deep/ä #b.mp4"] == archives["deflated"]  # it has no place to read from


def test_a_place_needs_no_directory(archives, monkeypatch):
    monkeypatch.setattr(clips, "_archive", lambda *_: 1 / 0)
    for _ in range(3):
        assert clips.open_binary(archives["placed"]).read() == CONTENT


def test_a_place_where_something_else_is_leads_to_the_directory(archives, tmp_path):
    others = (["longer", "v.mp4", "y"], ["x", "w.mp4", "v.mp4"])  # nothing there, another member
    for name, names in (("a.zip", ["x", "v.mp4"]), *zip(("b.zip", "c.zip"), others, strict=True)):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for member in names:
                archive.writestr(member, f"{name} {member}")
    address = clips.addresses(f"{tmp_path}/a.zip")["v.mp4"]
    assert clips.open_binary(address).read() == b"a.zip v.mp4"
    for name in ("b.zip", "c.zip"):
        os.replace(tmp_path / name, tmp_path / "a.zip")
        assert clips.open_binary(address).read() == f"{name} v.mp4".encode()


def test_damage_at_a_place_is_found(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("v.mp4", CONTENT)
    address = clips.addresses(f"{tmp_path}/a.zip")["v.mp4"]
    content = bytearray((tmp_path / "a.zip").read_bytes())
    content[len(CONTENT) // 2] ^= 1
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(OSError, match="CRC-32 is wrong"):
        clips.open_binary(address)
    (tmp_path / "a.zip").write_bytes(content[:1000])
    with pytest.raises(OSError, match="it is cut"):
        clips.open_binary(address)


def test_members_are_sorted_to_be_read_from_begin_to_end(archives):
    archive = archives["stored"].partition("::")[2]
    one, two = clips.addresses(archive).values()
    names = ["b.mp4", two, one, archives["tar"], "a.mp4"]
    order = sorted(names, key=clips.reading_order)
    assert order == ["b.mp4", "a.mp4", one, two, archives["tar"]]


def test_clips_travel_to_workers():
    clip = clips.Clip("a", "b.mp4", "text", "csv", 0.0, 2.0, {"aesthetic": 5.0})
    assert pickle.loads(pickle.dumps(clip)) == clip
    assert clips.Clip("a", "b", None) == clips.Clip("a", "b", None, "", None, None, {})
