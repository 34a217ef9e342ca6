"""How the bundled small voice is made: from free synthesisers' speech to a release folder, in one command.

``python -m indextts.training all`` runs the stages: synthetic speech with exact phone times -> semantic encoder -> semantic codec ->
language model, flow matching, vocoder and speaker encoder side by side -> a folder that :class:`indextts.IndexTTS2` loads. The networks
are those of ``indextts.models`` at other sizes; what exists here is data, losses and loops.
"""
