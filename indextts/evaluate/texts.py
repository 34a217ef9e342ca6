"""What is read aloud in an evaluation: fixed, our own, and in no training text.

The first 40 :data:`SENTENCES` are the ones that words are counted in and that a grammar chooses among. They are those of our sentences in
which the recogniser errs least on two source voices (flite's slt and awb), so that what it mishears of a clone is the clone's doing. All
100 show whether the voice stops when the text ends.
"""

from __future__ import annotations

import random

from indextts.evaluate.words import DIGITS

_ALL = """
The train to the coast leaves at seven every morning.
Please put the clean plates back on the top shelf.
We waited under the bridge until the rain had stopped.
The old clock in the kitchen is ten minutes slow.
Nobody remembered to water the plants on the balcony.
Her brother plays the violin in a small orchestra.
They painted the front door a bright shade of green.
The teacher handed out paper and a box of pencils.
I forgot my umbrella on the bus again this morning.
She keeps her letters in a wooden box under the bed.
The doctor told him to rest for at least a week.
There is a narrow path behind the church to the lake.
The children built a castle of sand near the water.
The museum is closed on Mondays and public holidays.
The cat slept on the carpet in front of the fire.
Most of the apples had fallen from the tree by then.
I would like a glass of water and some cheese.
The road to the village was blocked by fresh snow.
Did anyone see where I left the keys to the car?
They laughed about the story for the rest of the evening.
She learned to cook from her grandmother in the south.
It took us three hours to climb the steep mountain.
The price of coffee has gone up again this year.
He wrote his name on the first page of the book.
We should leave now if we want to catch the ferry.
Nothing in the garden grows as fast as these beans.
If the weather stays like this, we will eat in the garden on Sunday.
He has worked as a nurse in the same hospital for twenty years.
After lunch, the visitors walked through the old part of the town.
The letter arrived on Thursday, but nobody opened it until the weekend.
She could not decide between the blue dress and the brown one.
When the lights went out, somebody in the back row began to laugh.
We bought tomatoes, onions, and a large piece of fish at the market.
The first chapter is easy, the second is hard, and the third is short.
My father repaired radios in a tiny workshop next to the cinema.
You can borrow my camera as long as you bring it back by Friday.
The judge listened to both sides and then asked a single question.
He put the kettle on the stove and looked for a clean cup.
Every evening the same fisherman sits at the end of the pier.
The hotel was cheap, clean, and only five minutes from the beach.
My sister bought a red bicycle with her first wages.
The bakery on the corner sells warm bread after five.
A tall man in a grey coat asked me for directions.
The river was so cold that nobody wanted to swim.
Our neighbours moved to the city in early autumn.
He opened the window because the room was too warm.
Can you help me carry this heavy table upstairs?
The pilot spoke calmly while the plane was landing.
The engineer drew a simple plan of the new bridge.
A small boat drifted slowly across the quiet harbour.
The library has more than nine thousand old maps.
The farmer counted his sheep before he locked the gate.
The market was full of flowers, fruit and loud voices.
The lamp beside the sofa makes a soft yellow light.
The bell rang twice.
Where are my glasses?
I have never been to Spain.
Turn left after the bank.
The soup needs more salt.
He fixed the broken chair.
Tomorrow will be sunny and dry.
What a strange noise that was!
They met at the station.
The baby is finally asleep.
My hands are cold.
Leave the box outside, please.
The meeting starts at noon.
She sings in the choir.
Two horses crossed the field.
I lost the second ticket.
The paint is still wet.
How long did you wait?
The shop sells paper and ink.
Close the gate behind you.
The wind blew the leaves across the yard and into the open garage.
The dog barked at the postman, ran in a circle, and lay down again.
Before the bridge was built, people crossed the river in small boats.
The answer was simple, yet it took the whole class an hour to find it.
A young woman with a red scarf was selling tickets near the entrance.
Most birds leave in autumn, but a few of them stay all winter.
The storm damaged several roofs and knocked down an old oak tree.
I would rather walk home than wait another hour for the bus.
The captain studied the map, folded it, and pointed to the north.
She told us about her journey through the desert on a motorcycle.
The printer is out of paper, and the new box has not arrived.
In spring the meadow behind our house is full of yellow flowers.
He learned the poem by heart and recited it without a mistake.
The music was so loud that we had to shout across the table.
Some of the oldest trees in the park were planted by the queen.
The plumber came at nine and had finished the work by ten.
Her voice was calm, but her hands were shaking under the table.
The village has one shop, one school, and a very old well.
They offered him the job in April and he started in June.
The ice on the lake is too thin to carry a grown man.
We counted seven planes in the sky during a single breakfast.
The carpenter measured the window twice before he cut the wood.
It was already dark when the last guests said goodbye and left.
The old bridge shakes a little whenever a heavy truck drives over it.
She planted the seeds in March and picked the first beans in July.
The film was long and slow, but the ending surprised all of us.
"""
SENTENCES = tuple(_ALL.strip().splitlines())
CHOICES = SENTENCES[:40]

PROMPT = "This is how I sound when I read a sentence aloud, at an easy pace."
"""What a source voice says as its reference clip."""

PARAGRAPH = (
    "The first boat came in just before dawn. Nobody on the pier said a word. The men tied it up, lifted out the boxes, and went home. "
    "By noon the market was full. By four it was empty again, and the rain began to fall."
)
"""Several segments, for the joins between them."""


def digit_strings(count: int = 20, length: int = 6) -> list[str]:
    """Strings of spoken digits, always the same ones."""
    rng = random.Random(5)
    return [" ".join(rng.choices(DIGITS, k=length)) for _ in range(count)]
