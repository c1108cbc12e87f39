"""The sentences of the world: a small grammar, as data.

Each entry names its alternatives, all equally likely. An alternative is a row of `<entry>` references, a sentence with slots, or
nothing. Slots:

- `{name:kind}` draws a value of that kind, never one that the story holds already, and binds it to the name;
- `{name=other}` writes the value of another name and binds it to this one too;
- `{name}` recalls a bound value: a fact of the story;
- `{name.attribute}` writes what the world knows about a bound value: knowledge.
"""

GRAMMAR: dict[str, list[str]] = {
    "story": ["<lost>", "<broken>", "<trapped>", "<gift>", "<journey>", "<contest>"],
    # Plots. Every path gives 8 to 14 sentences.
    "lost": [
        "<who> <has> <taste> <trip> <meet> <loss> <sorrow> <helper> <creature> <found> <lost_end>",
        "<who> <has> <trip> <loss> <sorrow> <meet> <friend_taste> <search> <helper> <found> <thanks> <meal> <lost_end>",
        "<who> <has> <pet> <trip> <meet> <friend_pet> <loss> <search> <helper> <creature> <found> <meal> <lost_end>",
    ],
    "broken": [
        "<who> <has> <trip> <meet> <friend_taste> <harm> <worry> <repair> <mended> <broken_end>",
        "<who> <has> <pet> <trip> <harm> <worry> <meet> <friend_pet> <repair> <mended> <meal> <broken_end>",
        "<who> <has> <taste> <trip> <harm> <helper> <creature> <worry> <meet> <repair> <mended> <thanks> <broken_end>",
    ],
    "trapped": [
        "<who> <has> <pet> <trip> <trap> <meet> <friend_pet> <use> <freed> <trapped_end>",
        "<who> <has> <taste> <pet> <trip> <trap> <helper> <creature> <meet> <use> <freed> <thanks> <trapped_end>",
        "<who> <has> <pet> <trip> <meet> <friend_taste> <trap> <use> <freed> <meal> <trapped_end>",
    ],
    "gift": [
        "<who> <has> <friend> <friend_taste> <visit> <helper> <creature> <give> <delight> <gift_end>",
        "<who> <has> <taste> <friend> <friend_pet> <visit> <give> <delight> <meal> <gift_end>",
        "<who> <pet> <has> <friend> <friend_taste> <friend_pet> <visit> <give> <delight> <thanks> <meal> <gift_end>",
    ],
    "journey": [
        "<who> <has> <friend> <friend_taste> <road> <helper> <creature> <shelter> <arrive> <meal> <journey_end>",
        "<who> <has> <pet> <friend> <road> <helper> <shelter> <creature> <arrive> <friend_pet> <delight> <journey_end>",
        "<who> <has> <taste> <friend> <friend_pet> <road> <helper> <shelter> <arrive> <journey_end>",
    ],
    "contest": [
        "<who> <has> <contest_place> <meet> <friend_taste> <rivals> <wins> <prize_end>",
        "<who> <has> <taste> <contest_place> <meet> <friend_pet> <rivals> <helper> <creature> <wins> <meal> <prize_end>",
        "<who> <has> <pet> <contest_place> <meet> <rivals> <wins> <thanks> <meal> <prize_end>",
    ],
    # Who it is about, and what they own.
    "who": [
        "Once upon a time, {hero:person} the {hero.trade} lived in {hero.town}.",
        "This is the story of {hero:person}, a {hero.trade} from {hero.town}.",
        "{hero:person} worked as a {hero.trade} in the town of {hero.town}.",
        "Long ago, {hero:person} of {hero.town} was known as a fine {hero.trade}.",
        "Everyone loved {hero:person}, the only {hero.trade} in {hero.town}.",
    ],
    "has": [
        "{hero.He} had a {colour:colour} {thing:thing} made of {thing.material}.",
        "{hero.He} was proud of {hero.his} {colour:colour} {thing:thing}, which was good for {thing.use}.",
        "An uncle once gave {hero.him} a {colour:colour} {thing:thing} for {thing.use}.",
        "All winter {hero.he} saved money for a {colour:colour} {thing:thing} of real {thing.material}.",
        "Under {hero.his} bed lay a {colour:colour} {thing:thing} of the best {thing.material}.",
    ],
    "taste": [
        "{hero.His} favourite food was {hero.food}, and {hero.his} favourite colour was {hero.colour}.",
        "{hero.He} ate {hero.food} every morning and wore a {hero.colour} coat.",
        "{hero.He} dreamed about {hero.food} and painted {hero.his} door {hero.colour}.",
        "Nothing pleased {hero.him} more than a plate of {hero.food}.",
        "{hero.His} house was {hero.colour} inside and always smelled of {hero.food}.",
    ],
    "pet": [
        "{hero.His} {hero.pet} {hero.petname} followed {hero.him} everywhere.",
        "{hero.He} shared the house with a {hero.pet} named {hero.petname}.",
        "Every night {hero.petname} the {hero.pet} slept beside {hero.him}.",
        "{hero.He} often told secrets to {hero.petname}, {hero.his} clever {hero.pet}.",
        "{hero.His} pet was a {hero.pet}, and its name was {hero.petname}.",
    ],
    # Setting out, and meeting the friend.
    "trip": [
        "On {day:day} {hero} carried the {thing} to the {place:place}.",
        "One {weather:weather} morning {hero} took the {colour} {thing} to the {place:place}.",
        "Early on {day:day} {hero} and {hero.petname} walked to the {place:place}, bringing the {thing}.",
        "Last {day:day} {hero.he} needed the {thing} down by the {place:place}.",
        "After breakfast {hero.he} put on a {hero.colour} shirt and went to the {place:place} with the {thing}.",
    ],
    "meet": [
        "There stood {friend:person}, the {friend.trade} from {friend.town}.",
        "At the {place} {friend:person} the {friend.trade} was busy eating {friend.food}.",
        "Soon {friend:person}, who had come from {friend.town}, arrived with {friend.his} {friend.pet} {friend.petname}.",
        "Near the {place} {hero.he} noticed {friend:person}, a {friend.trade} in a {friend.colour} jacket.",
        "Somebody called, and it was {friend:person}, leading {friend.his} {friend.pet} home to {friend.town}.",
    ],
    "friend": [
        "{hero.His} best friend was {friend:person}, a {friend.trade} in {friend.town}.",
        "A letter came from {friend:person}, the {friend.trade} of {friend.town}.",
        "Every year {hero.he} visited {friend:person}, who kept a {friend.pet} in {friend.town}.",
        "{hero.He} had not seen {friend:person} since the {friend.trade} moved to {friend.town}.",
    ],
    "friend_taste": [
        "Now {friend} of {friend.town} liked {friend.food} best of all.",
        "It was said that {friend} could live on {friend.food} alone.",
        "As usual, {friend} had a {friend.colour} bag full of {friend.food}.",
        "Everything that {friend} owned was {friend.colour}, even the tiny bed of {friend.petname}.",
        "Most days {friend} thought only of {friend.food} and of the colour {friend.colour}.",
    ],
    "friend_pet": [
        "{friend} said that {friend.petname} the {friend.pet} had learned a new trick.",
        "The {friend.pet} of {friend} was called {friend.petname} and {friend.petsound} loudly.",
        "Behind {friend} ran {friend.petname}, a {friend.pet} with a {friend.colour} collar.",
        "People in {friend.town} knew {friend} by {friend.his} {friend.pet} {friend.petname}.",
    ],
    # The animal that helps.
    "helper": [
        "Then a {helper:animal} from the {helper.home} came near and {helper.sound}.",
        "Just then a hungry {helper:animal} {helper.sound} and asked for {helper.food}.",
        "Suddenly a {helper:animal} left its {helper.home}, looking for {helper.food}.",
        "High above, or maybe far below, a {helper:animal} {helper.sound} at {hero}.",
    ],
    "creature": [
        "The {helper} offered to help in return for some {helper.food}.",
        "It was a wise {helper} that knew every {helper.home} and {helper.sound} politely.",
        "The {helper} had been alone in the {helper.home} too long.",
        "{hero} had no {helper.food}, but the {helper} was happy with {hero.food}.",
    ],
    # Something lost.
    "loss": [
        "But on the way the {thing} {mishap:loss}.",
        "When {hero.he} turned around, the {colour} {thing} {mishap:loss}.",
        "Before long, by bad luck, the {thing} of {hero} {mishap:loss}.",
        "While {hero} was watching a cloud, the {thing} {mishap:loss}.",
    ],
    "sorrow": [
        "{hero} wept, for nothing else was so good for {thing.use}.",
        "Without the {thing} there would be no {thing.use}, thought {hero}.",
        "{hero} looked for anything {colour} and found only stones.",
        "Even a bowl of {hero.food} could not cheer up {hero}.",
    ],
    "search": [
        "{hero} and {friend} searched the whole {place} until dark.",
        "{friend} promised to look on every side of the {place}.",
        "They asked everyone at the {place} about a {colour} {thing}.",
        "{friend} lit a lantern and {hero} crawled along the ground.",
    ],
    "found": [
        "The {helper} pulled the {colour} {thing} out and gave it to {hero}.",
        "At last the {helper} {helper.sound} and pointed at something {colour}, and it was the {thing}.",
        "Within an hour the {helper} had brought back the {thing} of {thing.material}.",
        "Thanks to the {helper}, {hero} held the {colour} {thing} again.",
    ],
    "lost_end": [
        "That night {hero} told {hero.petname} how the {colour} {thing} {mishap} and how the {helper} found it.",
        "From then on the {thing} stayed in {hero.town}, and {hero} brought {helper.food} to the {helper}.",
        "Years later {hero} and {friend} still laughed about the {helper} and the {colour} {thing} at the {place}.",
        "{friend} went home to {friend.town} and told {friend.petname} that the {thing} {mishap}.",
        "So the {colour} {thing} that {mishap} at the {place} came home with {hero} the {hero.trade}.",
    ],
    # Something broken.
    "harm": [
        "But as soon as {hero} touched it, the {thing} {trouble:harm}.",
        "With a terrible noise the {colour} {thing} {trouble:harm}.",
        "{hero} stumbled, and the {thing} of {thing.material} {trouble:harm}.",
        "Without any warning the {thing} {trouble:harm} in the hands of {hero}.",
    ],
    "worry": [
        "How could anyone manage {thing.use} now, {hero} wondered.",
        "There was no more {thing.material} to be had in all of {hero.town}.",
        "{hero} sat down at the {place} and stared at the {colour} pieces.",
        "{hero} was a {hero.trade} and knew little about {thing.material}.",
    ],
    "repair": [
        "{friend} the {friend.trade} borrowed some {thing.material} and set to work on the {thing}.",
        "{friend} tied the pieces together with {friend.colour} thread.",
        "{friend} asked for nothing but {friend.food} and began mending the {colour} {thing}.",
        "{friend} knew a trick from {friend.town} for a {thing} that {trouble}.",
    ],
    "mended": [
        "Before sunset the {thing} was ready for {thing.use} again.",
        "Soon the {colour} {thing} looked as good as new.",
        "It took all evening, but {friend} made the {thing} whole.",
        "{hero} could hardly see where the {thing} {trouble}.",
    ],
    "broken_end": [
        "That night {hero} told {hero.petname} how the {colour} {thing} {trouble} at the {place}.",
        "In {hero.town} people still talk about {friend} the {friend.trade}, who mended the {colour} {thing} of {hero}.",
        "{hero} hung the {colour} {thing} on the wall and sent {friend.food} to {friend}.",
        "Since then {hero} goes to {friend} in {friend.town} whenever a {thing} is needed for {thing.use}.",
        "{friend} rode home and told {friend.petname} about the {place} where the {thing} {trouble}.",
    ],
    # A pet in trouble.
    "trap": [
        "All at once {hero.petname} {hero.petsound}, for the poor {hero.pet} was stuck in a {trap:trap}.",
        "Nobody saw how {hero.petname} got into the {trap:trap}, but now {hero.petname} could not get out.",
        "The {hero.pet} chased a leaf and ended up in a {trap:trap}.",
        "{hero} heard {hero.petname} crying from a deep dark {trap:trap}.",
    ],
    "use": [
        "{friend} had an idea and reached into the {trap} with the {colour} {thing}.",
        "They used the {thing}, though it was meant for {thing.use}.",
        "{friend} held the {thing} of {thing.material} while {hero} pushed the {trap}.",
        "{friend} the {friend.trade} laid {friend.food} beside the {trap} and waited.",
    ],
    "freed": [
        "With one jump the {hero.pet} left the {trap} and {hero.petsound} for joy.",
        "Slowly {hero.petname} climbed out of the {trap} and into the arms of {hero}.",
        "The {trap} tipped over, and {hero.petname} was free.",
        "At the third try {friend} lifted {hero.petname} from the {trap}.",
    ],
    "trapped_end": [
        "Back in {hero.town}, {hero} gave {hero.petname} some {hero.food} and kept away from every {trap}.",
        "Since then {hero} never visits the {place} without {friend} and the {colour} {thing}.",
        "{friend} returned to {friend.town} with a tale about {hero.petname} and the {trap} at the {place}.",
        "{hero} gave the {colour} {thing} to {friend}, who had saved {hero.petname} from the {trap}.",
        "That evening {hero.petname} and {friend.petname} played in {hero.town}, far from the {trap}.",
    ],
    # A gift.
    "visit": [
        "So {hero} wrapped the {colour} {thing} and set off for {friend.town} on {day:day}.",
        "On {day:day} {hero} decided that the {thing} should belong to {friend}.",
        "{hero} left {hero.petname} at home, packed the {thing} and met {friend} outside {friend.town}.",
        "{hero} thought that {friend} would need a {colour} {thing} for {thing.use}.",
    ],
    "give": [
        "{hero} waited for {friend} at the {place:place} and handed over the {colour} {thing}.",
        "The {thing} was given to {friend} at the {place:place}, tied with a {friend.colour} bow.",
        "At the {place:place} of {friend.town}, {friend} opened the parcel and saw the {colour} {thing}.",
        "Blushing, {hero} brought out the {thing} in front of the {place:place}, and {friend} smiled.",
    ],
    "delight": [
        "{friend} danced around with {friend.petname} in delight.",
        "In {friend.town} nobody had seen {friend} so happy before.",
        "{friend} kissed {hero} and called for {friend.food} to celebrate.",
        "{friend} could not stop praising the {colour} {thing}.",
    ],
    "gift_end": [
        "So the {colour} {thing} of {hero} now belongs to {friend} the {friend.trade}.",
        "{hero} went back to {hero.town} and told {hero.petname} about the {place} where {friend} got the {thing}.",
        "Whenever {friend} uses the {colour} {thing} for {thing.use}, {friend.he} thinks of {hero}.",
        "If you ever pass the {place} of {friend.town}, ask {friend} to show you the {colour} {thing}.",
        "In return {friend} sent {hero.food} and a {hero.colour} scarf to {hero} in {hero.town}.",
    ],
    # A journey through bad weather.
    "road": [
        "{hero} started for {friend.town} on a {weather:weather} {day:day}, with the {thing} in a bag.",
        "The way from {hero.town} to {friend.town} was long and {weather:weather}.",
        "On {day:day} a {weather:weather} wind blew {hero} and the {colour} {thing} off the road.",
        "Halfway to {friend.town} the sky turned {weather:weather}, and {hero} lost the path.",
    ],
    "shelter": [
        "The {helper} led {hero} to an empty {place:place} and kept watch.",
        "Together they hid in the {place:place} and shared the last {hero.food}.",
        "They slept in a {place:place} not far from the {helper.home}, using the {thing} as a door.",
        "By the {place:place} the {helper} showed {hero} a path to {friend.town}.",
    ],
    "arrive": [
        "In the morning {hero} knocked at the {friend.colour} door of {friend}.",
        "When {hero} reached {friend.town}, {friend.petname} the {friend.pet} {friend.petsound} first.",
        "At noon {friend} saw {hero} coming, holding up the {colour} {thing}.",
        "{friend} the {friend.trade} ran out to welcome {hero}.",
    ],
    "journey_end": [
        "{hero} told {friend} all about the {weather} trip, the {helper} and the {place}.",
        "When {hero} went home to {hero.town}, {hero.he} left {helper.food} at the {place} for the {helper}.",
        "{friend} still calls {hero} the {weather} {hero.trade} who slept beside a {helper}.",
        "The {colour} {thing} stayed with {friend} in {friend.town}, and the {helper} stayed at the {place}.",
        "Back home {hero.petname} the {hero.pet} would not believe the tale of the {helper} in the {place}.",
    ],
    # A contest.
    "contest_place": [
        "On {day:day} there was a {game:game} contest at the {place:place}, and the best would get a {prize:prize}.",
        "Posters at the {place:place} promised a {prize:prize} for {game:game}.",
        "The people of {hero.town} met at the {place:place} for {game:game}, hoping to win a {prize:prize}.",
        "A {prize:prize} was waiting at the {place:place} for whoever was best at {game:game}.",
    ],
    "rivals": [
        "Both {hero} and {friend} had practised {game} with care.",
        "{friend} boasted that no {hero.trade} was any use at {game}.",
        "{hero} wore {hero.colour} and {friend} wore {friend.colour}.",
        "{hero.petname} cheered for {hero}, and {friend.petname} cheered for {friend}.",
        "{friend} ate some {friend.food} for strength, while {hero} rubbed the {colour} {thing} for luck.",
    ],
    "wins": ["<hero_wins> <joy>", "<friend_wins> <joy>"],
    "hero_wins": [
        "In the end {winner=hero} was the best at {game}.",
        "The judges chose {winner=hero} of {hero.town}.",
        "Nobody could beat {winner=hero} the {hero.trade}.",
    ],
    "friend_wins": [
        "To the surprise of all, {winner=friend} of {friend.town} was first.",
        "The judges voted for {winner=friend} the {friend.trade}.",
        "Everyone agreed that {winner=friend} had won the {game}.",
    ],
    "joy": [
        "{winner.petname} the {winner.pet} {winner.petsound} with pride.",
        "{winner} lifted the {prize} above {winner.his} head.",
        "They hung {winner.colour} flags around the {place} for {winner}.",
        "The whole {place} shouted for {winner} and threw {winner.food} in the air.",
    ],
    "prize_end": [
        "The {prize} still stands in the house of {winner} in {winner.town}.",
        "{winner} gave the {prize} to {winner.petname}, who carried it around the {place}.",
        "Ever since, {winner} the {winner.trade} teaches {game} at the {place}.",
        "{hero} and {friend} shared {winner.food} at the {place} and polished the {prize} of {winner}.",
        "So {winner} took the {prize} home, and {hero} kept the {colour} {thing}.",
    ],
    # Thanks and food.
    "thanks": [
        "{hero} thanked {friend} and promised to visit {friend.town}.",
        "{hero} hugged {friend} and gave {friend.him} a {friend.colour} button.",
        "{friend} bowed and wished {hero} and {hero.petname} well.",
    ],
    "meal": [
        "They sat down to a supper of {hero.food} and {friend.food}.",
        "{hero} cooked {friend.food} for {friend} at the {place}.",
        "{friend} shared some {friend.food}, and {hero.petname} licked the bowl.",
        "Later they fed {hero.petname} and {friend.petname} and ate {hero.food}.",
    ],
}
