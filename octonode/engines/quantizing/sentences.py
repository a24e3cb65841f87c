"""Sentences of our own by which embeddings of a model and of its smaller child are compared. Plain and varied."""

from __future__ import annotations

from typing import Final

SENTENCES: Final = (
    "The ferry leaves at seven and comes back when the tide turns.",
    "A receipt that nobody can check is only a claim.",
    "She repaired the clock with a hairpin and a great deal of patience.",
    "Rain is expected over the northern hills until Thursday evening.",
    "The recipe needs two eggs, a cup of flour and a little salt.",
    "Prices of copper fell for the third week in a row.",
    "How do I reset the password of my account?",
    "The court found that the contract had been broken by both sides.",
    "A binary search halves the range with every comparison.",
    "He plays the cello in an orchestra of amateurs.",
    "The vaccine is given in two doses, four weeks apart.",
    "Our train stood for an hour in front of a closed signal.",
    "What is the capital of Mongolia?",
    "The children built a dam of stones across the brook.",
    "Interest is compounded daily and paid at the end of the quarter.",
    "Owls turn their heads because their eyes cannot move.",
    "Please send me the invoice before Friday.",
    "The printer jams when the paper is damp.",
    "An old map showed a road where now there is a lake.",
    "Gradient descent follows the slope of the loss downhill.",
    "The goalkeeper was sent off after twenty minutes.",
    "Bread dough should rest in a warm place until it doubles.",
    "The senate voted on the bill late at night.",
    "Light from that star left it before the pyramids were built.",
    "My flight was cancelled; can I have my money back?",
    "The violin was sold at auction for a record sum.",
    "Water expands when it freezes, and so pipes burst.",
    "The novel tells of three sisters and an unfinished house.",
    "A node that leaves the network says so before it goes.",
    "The patient complained of pain in the left knee.",
    "Plant the bulbs in autumn, a hand's breadth deep.",
    "There is a fork in the path behind the chapel.",
)
