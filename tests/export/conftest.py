import pytest

from tests.support import checkpoints


@pytest.fixture(scope="session")
def llama(tmp_path_factory):
    return checkpoints.save_decoder(tmp_path_factory.mktemp("llama") / "model")


@pytest.fixture(scope="session")
def encoder(tmp_path_factory):
    return checkpoints.save_sentence_encoder(tmp_path_factory.mktemp("encoder") / "model")
