"""The words of the world, as data. Every list is fixed: its order decides who owns what (see world.py)."""

WOMEN = """Ada Agnes Alba Alice Alma Amber Amy Anna Ava Bella Beth Betty Bianca Carla Cecily Celia Chloe Clara Cora Daisy Dalia
Della Diana Dora Edie Edith Ella Elsa Elsie Emma Erin Esme Eva Faye Fiona Flora Freya Gemma Gina Greta Gwen Hana Hattie Hazel
Heidi Helen Hilda Ida Ines Inga Iris Isla Ivy Jane Jenny Jess Joan Julia June Kate Kira Laura Leah Lena Lila Linda Lotte Lucy Luna
Mabel Maeve Maria Martha Matilda Maud Maya Mia Mina Mira Molly Mona Nancy Nell Nina Nora Olga Olive Paula Pearl Petra Polly Rita
Rosa Rosie Ruby Ruth Sadie Sally Sara Selma Sonia Stella Susan Tara Tess Thea Tilda Tina Una Vera Viola Wanda Wilma Yara Zelda
Zoe""".split()

MEN = """Abel Adam Alan Albert Alec Amos Andy Anton Arlo Arthur Axel Barney Basil Ben Boris Bram Bruno Caleb Carl Casper Cedric
Clive Colin Conrad Cyril Dan David Dennis Dexter Dirk Edgar Edwin Eli Emil Eric Ernest Ethan Felix Finn Frank Fred Gavin George
Gilbert Glen Gordon Gregor Gus Hal Hank Harold Harry Hector Henry Hugo Ian Igor Isaac Ivan Jack Jacob Jake Jasper Jim Joel Jonas
Julian Karl Keith Ken Kurt Lars Leo Levi Liam Linus Louis Luke Magnus Marcus Mark Martin Max Miles Milo Moses Ned Neil Nils Noah
Omar Oscar Otto Owen Pablo Paul Percy Peter Philip Ralph Ray Rex Robin Roger Rufus Sam Saul Sid Silas Simon Stan Sven Ted Theo
Toby Tom Victor Walter Will""".split()

PETS = {  # kind: the sound it makes
    "dog": "barked", "cat": "purred", "parrot": "whistled", "rabbit": "thumped", "goat": "bleated", "pony": "neighed",
    "duck": "quacked", "hen": "clucked", "lamb": "baaed", "mouse": "peeped",
}  # fmt: skip

PET_NAMES = """Acorn Bandit Bean Biscuit Blossom Bubbles Button Candy Captain Cinnamon Clover Coco Comet Cookie Cricket Crumb
Domino Dusty Echo Fern Fidget Flash Fluffy Freckle Fuzzy Ginger Gizmo Goblin Jelly Jingle Lucky Marble Mango Midnight Mitten
Muffin Nibbles Noodle Nugget Pebble Peanut Pepper Pickle Pippin Pirate Pixie Poppy Pudding Puzzle Rocket Rusty Scout Shadow
Smoky Snowy Spark Sprout Tiger Truffle Whisker""".split()

TOWNS = """Ashford Barrow Birchwood Bluffton Briarly Cliffside Coldwell Copperhill Dunmore Eastport Elmstead Fairhaven Farley
Foxdale Glenby Goldcrest Harborne Hillview Kelton Lakewick Larkham Maplebury Marshend Millbrook Norwick Oakton Pinecroft Ravenmoor
Redbridge Rockport Rosewell Sandford Silverlea Stonegate Sunfield Thornby Upland Westmere Whitby Windale""".split()

TRADES = """baker barber blacksmith bricklayer butcher carpenter clockmaker cobbler cook doctor driver farmer ferryman fisher
florist gardener glazier grocer guard hatter hunter judge locksmith mason miller miner nurse painter piper plumber porter potter
printer sailor shepherd singer tailor teacher thatcher weaver""".split()

FOODS = """apples bacon bananas beans berries biscuits broth butter cabbage cake carrots cheese cherries chestnuts chocolate
crackers cream dumplings figs fudge gravy ham honey jam lentils lemons melon mushrooms noodles nuts oats olives omelettes onions
pancakes pasta peaches pears peas pie plums porridge potatoes pumpkin raisins rice soup toast toffee waffles""".split()

COLOURS = """black blue brown crimson golden green grey orange pink purple red silver turquoise white yellow""".split()

ANIMALS = {  # wild animal: (its food, the sound it makes, where it lives)
    "badger": ("worms", "snuffled", "burrow"), "bat": ("moths", "squeaked", "cave"), "bear": ("salmon", "growled", "den"),
    "beaver": ("bark", "slapped", "dam"), "bee": ("nectar", "buzzed", "hive"), "blackbird": ("berries", "sang", "hedge"),
    "buffalo": ("grass", "bellowed", "plain"), "crab": ("shells", "clicked", "beach"), "crane": ("eels", "trumpeted", "marsh"),
    "crow": ("corn", "cawed", "treetop"), "deer": ("leaves", "snorted", "forest"), "dolphin": ("sardines", "whirred", "sea"),
    "donkey": ("hay", "brayed", "stable"), "dove": ("seeds", "cooed", "tower"), "falcon": ("sparrows", "screamed", "cliff"),
    "fox": ("grapes", "yapped", "thicket"), "frog": ("flies", "croaked", "pond"), "goose": ("weeds", "honked", "lake"),
    "gull": ("crumbs", "shrieked", "harbour"), "hare": ("clover", "drummed", "meadow"), "hedgehog": ("beetles", "sniffed", "ditch"),
    "lion": ("zebras", "roared", "desert"), "lizard": ("ants", "rustled", "wall"), "monkey": ("bananas", "chattered", "jungle"),
    "moose": ("moss", "grunted", "swamp"), "raven": ("cheese", "rasped", "ruin"), "seal": ("squid", "yelped", "island"),
    "snake": ("eggs", "hissed", "rocks"), "spider": ("gnats", "tapped", "attic"), "squirrel": ("nuts", "twittered", "oak"),
    "swan": ("reeds", "sighed", "river"), "tortoise": ("lettuce", "mumbled", "garden"), "turkey": ("wheat", "gobbled", "barn"),
    "whale": ("shrimp", "boomed", "ocean"), "wolf": ("bones", "howled", "mountain"), "woodpecker": ("grubs", "knocked", "pine"),
}  # fmt: skip

THINGS = {  # thing: (what it is made of, what it is for)
    "axe": ("iron", "chopping wood"), "bag": ("leather", "holding coins"), "ball": ("rubber", "playing catch"),
    "basket": ("straw", "gathering fruit"), "bell": ("brass", "calling people"), "blanket": ("wool", "keeping warm"),
    "boat": ("wood", "crossing water"), "book": ("paper", "learning songs"), "bottle": ("glass", "keeping juice"),
    "bowl": ("clay", "mixing dough"), "broom": ("twigs", "sweeping floors"), "brush": ("bristle", "smoothing hair"),
    "bucket": ("tin", "fetching water"), "candle": ("wax", "giving light"), "chair": ("wood", "sitting down"),
    "chain": ("iron", "locking gates"), "cloak": ("wool", "hiding away"), "coin": ("copper", "paying tolls"),
    "comb": ("horn", "combing hair"), "cup": ("clay", "drinking tea"), "doll": ("rags", "playing house"),
    "drum": ("leather", "keeping time"), "flag": ("silk", "waving hello"), "flute": ("bamboo", "playing tunes"),
    "glove": ("leather", "warming hands"), "hammer": ("steel", "hitting nails"), "harp": ("wood", "making music"),
    "hat": ("felt", "shading eyes"), "jar": ("glass", "storing sweets"), "kettle": ("copper", "boiling water"),
    "key": ("brass", "opening doors"), "kite": ("silk", "catching wind"), "knife": ("steel", "slicing bread"),
    "ladder": ("wood", "climbing roofs"), "lamp": ("brass", "reading late"), "mirror": ("glass", "seeing faces"),
    "needle": ("bone", "sewing shirts"), "net": ("string", "catching fish"), "pan": ("iron", "frying fish"),
    "pillow": ("feathers", "resting heads"), "pipe": ("bamboo", "blowing smoke"), "plate": ("tin", "serving dinner"),
    "ring": ("gold", "making promises"), "rope": ("hemp", "tying knots"), "rug": ("wool", "covering floors"),
    "saw": ("steel", "cutting boards"), "scarf": ("silk", "covering necks"), "shovel": ("iron", "digging holes"),
    "sledge": ("wood", "sliding downhill"), "spoon": ("tin", "stirring soup"), "tent": ("canvas", "sleeping outdoors"),
    "whistle": ("bone", "calling dogs"),
}  # fmt: skip

PLACES = """bakery bridge castle chapel church corner courtyard crossroads dock fair farm ferry fountain gate hall hilltop inn
kitchen library lighthouse market mill orchard palace park quarry road school shop square station stream street temple theatre
tunnel valley village well workshop""".split()

DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()

WEATHERS = "bright chilly cloudy cold dry foggy frosty hot misty rainy snowy stormy sunny warm windy".split()

LOSSES = [  # what went wrong in a story of something lost
    "fell into the mud", "rolled under a cart", "slipped through a hole", "blew over the fence", "sank in the snow",
    "was left behind", "was carried off", "dropped down a drain", "floated away", "got mixed with others",
]  # fmt: skip

HARMS = [  # what went wrong in a story of something broken
    "cracked", "snapped", "bent", "split", "jammed", "crumbled", "burst", "shattered", "came apart", "caught fire",
]  # fmt: skip

TRAPS = ["barrel", "bush", "chimney", "crate", "cupboard", "net", "pit", "sack", "tree", "trench"]  # where a pet gets stuck

PRIZES = ["crown", "cup", "flower", "garland", "medal", "ribbon", "statue", "trophy"]  # what a contest is for

GAMES = ["dancing", "juggling", "jumping", "marching", "rowing", "running", "singing", "skating", "spelling", "throwing"]
