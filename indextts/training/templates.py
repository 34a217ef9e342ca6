"""Everyday English sentences from templates: the words that technical documents lack."""

from __future__ import annotations

import random

_LISTS: dict[str, str] = {
    "name": """Anna Ben Carla David Emma Frank Grace Harry Ivy Jack Kate Leo Maria Nora Oscar Peter Rosa Sam Tom Victor Wendy
        Alice Robert Susan Michael Linda James Mary John Sarah Paul Julia Mark Helen George Lucy Daniel Sophie
        Henry Laura Simon Clara Martin Eva Arthur Ruth""",
    "who": """I| you| we| they| my mother| my father| my brother| my sister| the teacher| our neighbour| the old man|
        the young woman| her uncle| his aunt| the driver| the doctor| the nurse| the farmer| the baker|
        the children| most people| everybody| nobody| someone| the captain| the pilot| a stranger|
        the gardener| my best friend| the cook| the painter| the singer| the judge| the soldier| the queen|
        the king| the boy| the girl| the whole family""",
    "thing": """book| letter| garden| window| kitchen| bicycle| umbrella| camera| guitar| piano| blanket| mirror| ladder|
        basket| bottle| pocket| hammer| candle| painting| jacket| sweater| shoe| hat| coat| table| chair|
        door| key| clock| watch| phone| radio| lamp| bed| pillow| cup| plate| knife| fork| spoon| glass| bowl|
        box| bag| ball| toy| bridge| river| mountain| island| forest| field| road| street| village| city|
        market| school| church| museum| hospital| library| station| airport| beach| castle| tower| house|
        roof| wall| fence| train| bus| boat| ship| plane| car| truck| horse| dog| cat| bird| fish| cow| sheep|
        mouse| rabbit| bear| wolf| fox| lion| tiger| elephant| monkey| snake| spider| bee| butterfly| tree|
        flower| leaf| grass| rose| apple tree| stone| cloud| star| story| song| poem| picture| question|
        answer| idea| plan| dream| secret| mistake| lesson| machine| engine| computer| newspaper| ticket|
        present""",
    "food": """bread| butter| cheese| soup| salad| chicken| beef| fish| rice| potatoes| tomatoes| carrots| onions| apples|
        oranges| bananas| grapes| cherries| strawberries| chocolate| cake| cookies| ice cream| coffee| tea|
        milk| water| juice| sugar| salt| pepper| honey| eggs| pancakes| noodles| pasta| pizza| sandwiches|
        sausages| mushrooms| beans| corn| garlic| lemon| yogurt| breakfast| lunch| dinner""",
    "adj": """red| blue| green| yellow| black| white| brown| grey| pink| purple| orange| big| small| tall| short| long| old|
        new| young| warm| cold| hot| cool| dry| wet| soft| hard| heavy| light| dark| bright| quick| slow|
        quiet| loud| clean| dirty| cheap| expensive| easy| difficult| simple| strange| funny| sad| happy|
        angry| tired| hungry| thirsty| lazy| busy| brave| gentle| honest| clever| careful| careless|
        beautiful| ugly| empty| full| broken| famous| favourite| wonderful| terrible| delicious| sweet| sour|
        bitter| fresh| ripe| golden| silver| wooden| narrow| wide| deep| shallow| smooth| rough| sharp| thick|
        thin""",
    "past": """found| lost| bought| sold| saw| heard about| forgot| remembered| painted| repaired| cleaned| broke| carried|
        dropped| borrowed| returned| described| photographed| admired| liked| hated| loved| wanted| needed|
        moved| opened| closed| hid| showed us| gave away| threw away| looked at| asked for| talked about|
        dreamed of| waited for| watched| followed| touched| pushed| pulled| stole| chose| drew| built| burned|
        washed""",
    "verb": """buy| sell| find| paint| clean| carry| borrow| return| describe| move| open| close| hide| see| build| wash|
        draw| choose| push| pull| watch| follow| forget| remember| break| fix| keep| bring| take| visit|
        photograph| measure| touch| count| hold| share| send| burn| catch| throw| lift| understand""",
    "adv": """slowly| quickly| quietly| carefully| suddenly| finally| usually| often| never| always| sometimes| rarely|
        gently| loudly| happily| sadly| angrily| easily| nearly| almost| probably| certainly| perhaps| really|
        simply| clearly| again| together| alone| outside| inside| upstairs| downstairs""",
    "when": """yesterday| today| tomorrow| this morning| last night| on Monday| on Tuesday| on Wednesday| on Thursday|
        on Friday| on Saturday| on Sunday| in January| in February| in March| in April| in May| in June|
        in July| in August| in September| in October| in November| in December| in spring| in summer|
        in autumn| in winter| before breakfast| after lunch| at noon| at midnight| an hour ago| a week ago|
        two years ago| at the weekend| every day| every morning| once a year| for the first time|
        at the end of the year| during the holidays| after the storm""",
    "where": """in the kitchen| in the garden| at the station| at school| on the beach| under the bridge| behind the house|
        in front of the museum| near the river| across the street| on the roof| at the market| in the forest|
        by the window| next to the door| in the middle of the road| between the trees| above the clouds|
        in London| in New York| in Paris| in the village| at home| at work| in the library| on the mountain|
        around the corner| at the airport| in the hospital| on the island| in a small town| far away|
        beside the lake| along the coast""",
    "weather": """sunny| cloudy| rainy| windy| foggy| stormy| snowy| warm| cold| hot| freezing| mild| dry| humid| pleasant|
        awful""",
    "job": """teacher| doctor| nurse| farmer| baker| driver| pilot| painter| writer| singer| dancer| actor| engineer|
        scientist| lawyer| judge| soldier| sailor| gardener| carpenter| plumber| waiter| cook| journalist|
        photographer| musician| student| librarian| mechanic| shopkeeper""",
    "num": """one| two| three| four| five| six| seven| eight| nine| ten| eleven| twelve| thirteen| fourteen| fifteen|
        sixteen| seventeen| eighteen| nineteen| twenty| twenty one| thirty two| forty three| fifty four|
        sixty five| seventy six| eighty seven| ninety eight| one hundred| two hundred and six|
        three hundred and fifty| five thousand| ten thousand| a million""",
    "feel": """happy| sad| angry| afraid| proud| tired| lonely| surprised| nervous| calm| excited| bored| jealous| grateful|
        sorry| worried| lucky| hungry""",
}  # fmt: skip

_TEMPLATES = """
{who} {past} the {adj} {thing} {where}.|{name} {past} a {adj} {thing} {when}.|The {thing} was {adj}, but the {thing} was {adj}.
Where is the {adj} {thing}?|Do you want to {verb} the {thing}?|Please {verb} the {adj} {thing} {when}.
I would like some {food}, please.|We had {food} and {food} for dinner {when}.|The weather is {weather} {when}.
It was {weather} and {weather} {where}.|{name} is a {job}, and {name} is a {job}.|My {thing} is {adj} and {adj}.
There are {num} {adj} birds {where}.|{num} plus {num} is {num}.|Can you {verb} this {thing} for me?|{who} {adv} {past} the {thing}.
If it is {weather}, we will {verb} the {thing}.|She feels {feel} {when}.|He said that the {thing} was too {adj}.
Why did {name} {verb} the {thing}?|Nobody {past} the {thing} {where} {when}.|I don't want to {verb} it.|How many {food} do you need?
Call me at {num} {num} {num} {num}.|The train to the {thing} leaves at {num}.|{name} isn't {feel}, only a little {feel}.
When I was young, I {past} a {thing} {where}.|You should {adv} {verb} the {adj} {thing}.|What a {adj} {thing}!
Thank you for the {food}.|{when}, {who} {past} {num} letters from {name}.|Both the {thing} and the {thing} are {adj}.
I'm {feel}, because {name} {past} my {thing}.|Good morning, {name}, did you sleep well?
Let's {verb} the {thing} before it gets dark.|Have you ever seen such a {adj} {thing}?|The {job} asked the {job} a {adj} question.
After {num} minutes the {thing} was {adj} again.|We can't {verb} the {thing} without {name}.
{name} lives {where} with {num} cats and a {thing}.|The {adj} {thing} belongs to {name}'s sister.|It costs {num} dollars.
Turn left, then turn right.|That sounds {adj} to me.|Are you {feel} or just {feel}?|Everyone {where} was {feel} {when}.
I bought {food}, {food}, and {food} {when}.|Hello, my name is {name}, and I am a {job}.|{adv}, the {job} {past} the {adj} {thing}.
The {food} tasted {adj}.|See you {when}, {name}.
"""
_CHOICES = {key: [" ".join(item.split()) for item in (text.split("|") if "|" in text else text.split())] for key, text in _LISTS.items()}
_PATTERNS = [pattern for line in _TEMPLATES.strip().splitlines() for pattern in line.split("|")]


def template_sentence(rng: random.Random) -> str:
    """One sentence, first letter upper-case."""
    pattern = rng.choice(_PATTERNS)
    parts = pattern.split("{")
    text = parts[0]
    for part in parts[1:]:
        slot, rest = part.split("}", 1)
        text += rng.choice(_CHOICES[slot]) + rest
    return text[0].upper() + text[1:]


def vocabulary() -> set[str]:
    """All words of the lists, lower-case."""
    return {word for items in _CHOICES.values() for item in items for word in item.lower().split()}
