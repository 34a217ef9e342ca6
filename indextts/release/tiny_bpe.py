"""A SentencePiece tokenizer trained on the spot: upper-case English and the common Chinese characters.

It stands in for the release's ``bpe.model`` where weights are random. Specials as there: ``<s>`` 0, ``</s>`` 1, ``<unk>`` 2;
upper-case letters only, no byte fallback. Same pieces on every run.
"""

from __future__ import annotations

import functools
import io

_WORDS = """
a about above across act add after again against age air all almost along also always am among an and animal another answer any
anything appear are area arm around as ask at away back bad ball base be bear beautiful became because become bed been before began
begin behind being believe below best better between big bird bit black blue board boat body book both bottom box boy bring brother
brought brown build building business but buy by call came can cannot capital car care carry cat catch caught cause centre certain
chance change check child children city class clear close cold colour come common complete contain cool correct could country course
cover cross cry cut dark day deep did difference different direct distance do does dog door down draw dream drive dry during each early
earth ease east easy eat egg end enough even evening ever every example eye face fact fall family far farm fast father feel feet few
field figure fill final find fine fire first fish five floor fly follow food foot for force form found four free friend from front full
game garden gave general get girl give glass go gold gone good got great green ground group grow had half hand happen happy hard has
have he head hear heart heat heavy held hello help her here high him his history hold home hope horse hot hour house how hundred idea if
important in inside interest into is island it its just keep kind king knew know lady land language large last late laugh lead learn
leave left less let letter life light like line list listen little live long look lot love low machine made main make man many map mark
may me mean measure meet men mile mind minute miss money month moon more morning most mother mountain move much music must my name near
need never new next night no north not note nothing notice now number object ocean of off often oh old on once one only open or order
other our out over own page paper part pass past pattern people perhaps person picture piece place plain plan plane plant play please
point poor possible power press problem produce public pull put question quick quiet quite rain ran reach read ready real reason record
red remember rest right ring river road rock room round rule run said same sat save saw say school science sea season second see seem
self sentence serve set seven several shall shape she ship short should show side simple since sing sister sit six sleep slow small snow
so some something song soon sound south space speak special speech spell spring stand star start state stay step still stood stop store
story street strong study such sudden summer sun sure surface system table take talk teach tell ten test text than thank that the their
them then there these they thing think this those though thought thousand three through time to together told too took top toward town
travel tree true try turn two under understand unit until up upon us use usual very voice vowel wait walk wall want war warm was watch
water way we weather week weight well went were west what wheel when where which while white who whole why will wind window winter wish
with woman wonder wood word work world would write wrong year yellow yes yet you young your zero
ing ing tion tion ment ness ed ed er er ly ly ight ough ther
"""
_MARKS = ". , ! ? ' - ... : 1 2 3 4 5"  # the digits are the tones of pinyin
TOKENIZER_SIZE = 4096  # pieces: specials, single characters, and about 300 merges


def common_characters() -> str:
    """The 3755 simplified Chinese characters of GB 2312's first level, which covers nearly all running text."""
    rows = (bytes((high, low)) for high in range(0xB0, 0xD8) for low in range(0xA1, 0xFF) if (high, low) < (0xD7, 0xFA))
    return b"".join(rows).decode("gb2312")


@functools.cache
def tiny_tokenizer() -> bytes:
    """The serialised SentencePiece model, :data:`TOKENIZER_SIZE` pieces."""
    import sentencepiece

    words = _WORDS.upper().split()
    lines = [" ".join(words), " ".join("ABCDEFGHIJKLMNOPQRSTUVWXYZ"), _MARKS, *common_characters()]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=TOKENIZER_SIZE,
        character_coverage=1.0,
        byte_fallback=False,
        bos_id=0,
        eos_id=1,
        unk_id=2,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()
