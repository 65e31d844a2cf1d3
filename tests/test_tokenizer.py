import pickle

import numpy as np
import pytest
import tokenizers
import transformers

from data_pipelines.loading import tokenizer


def test_bytes_end_with_the_end_token_and_pad_with_zero():
    tokenize = tokenizer.make_tokenize(None, 6)
    ids_BL, mask_BL = tokenize(["abc", ""])
    np.testing.assert_array_equal(ids_BL, [[100, 101, 102, 1, 0, 0], [1, 0, 0, 0, 0, 0]])
    np.testing.assert_array_equal(mask_BL, ids_BL != 0)
    assert ids_BL.dtype == np.int32 and mask_BL.dtype == bool
    assert tokenize.vocab_size > 258


def test_long_captions_are_cut_and_long_prompts_refused():
    tokenize = tokenizer.make_tokenize(None, 6)
    ids_BL, mask_BL = tokenize(["abcdefgh"])
    assert mask_BL.all() and ids_BL[0].tolist() == [100, 101, 102, 103, 104, 1]
    assert tokenize.cut == 1
    assert tokenize(["abcde", ""])[1].sum() == 7 and tokenize.cut == 1
    with pytest.raises(ValueError, match=r"9 tokens, but the model takes 6: shorten it by 3"):
        tokenize(["abcdefgh"], strict=True)
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        tokenize(["abc", " "], strict=True)


def test_a_folder_of_files_is_used_and_known_by_its_content(tmp_path):
    words = {"<pad>": 0, "</s>": 1, "<unk>": 2, "red": 3, "circle": 4}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    model.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=model, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(tmp_path)
    tokenize = tokenizer.make_tokenize(tmp_path, 4)
    ids_BL, _ = tokenize(["red circle", "red red red red red"])
    np.testing.assert_array_equal(ids_BL, [[3, 4, 1, 0], [3, 3, 3, 1]])
    assert tokenize.fingerprint != tokenizer.make_tokenize(None, 4).fingerprint
    assert tokenize.fingerprint != tokenizer.make_tokenize(tmp_path, 5).fingerprint
    again = pickle.loads(pickle.dumps(tokenize))
    np.testing.assert_array_equal(again(["red"])[0], tokenize(["red"])[0])


def test_a_wrong_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        tokenizer.make_tokenize(tmp_path / "none", 8)
    with pytest.raises(ValueError, match="holds no tokenizer"):
        tokenizer.make_tokenize(tmp_path, 8)
    with pytest.raises(ValueError, match="2 or more"):
        tokenizer.make_tokenize(None, 1)
