"""How the bundled small voice is made: from free synthesisers' speech to a release folder, in one command.

``python -m indextts.training all`` runs the stages: synthetic speech with exact phone times -> semantic encoder -> semantic codec and
speaker encoder -> language model, flow matching and vocoder; ``export`` writes a folder that :class:`indextts.IndexTTS2` loads. The
networks are those of ``indextts.models`` at other sizes (:mod:`indextts.training.sizes`); what exists here is data, losses and loops.

What shortens the way to speech, each a switch: phones of a lexicon as text (``--lexicon``), attention shown where to look
(``--unguided`` to go without), codes that agree with the spoken phones (``--faithful``), whole steps replayed as CUDA graphs
(``--no-replay``), 16-bit arithmetic (``--precision``), a cheap start of flow matching (``--lead``, ``--early``).
"""
