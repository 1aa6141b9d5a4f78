"""Names for the leaderboard, so that owners can be ranked without being named.

Derivation: the network's, from the SHA-256 of the account id; the words are our own. It is not
salted, so whoever knows an account id can compute its pseudonym.
"""

from __future__ import annotations

import hashlib
from typing import Final

_ADJECTIVE_TEXT: Final = (
    "able agile amber ample apt arctic azure balmy bold brave breezy bright brisk bronze calm "
    "candid casual cheery civil clear clever coastal cobalt cosmic cozy crimson crisp curious "
    "dapper daring dawn deft dewy early earnest easy eager elder emerald epic even fabled fair "
    "fancy fast festive fierce fine fleet fluent fond frank free fresh frosty gallant gentle "
    "gilded glad glossy golden grand green happy hardy hazel honest humble icy ideal indigo ivory "
    "jade jolly jovial keen kind lively lofty loyal lucid lucky lunar mellow merry mighty mild "
    "mint misty modest neat nimble noble novel olive opal patient pearl placid plucky polar polite "
    "prime proud quick quiet rapid ready regal rosy ruby rustic sage sandy serene sharp silent "
    "silver sleek smart snowy solar solid spry stable starry steady stellar sturdy sunny sure "
    "swift tame teal tender tidy topaz tranquil trim true upbeat vast velvet vivid warm wise witty"
)
_ANIMAL_TEXT: Final = (
    "albatross alpaca antelope auk badger bat bear beaver bee beetle bison boar bobcat buffalo "
    "bunting butterfly camel caribou cat cheetah chipmunk cicada cobra condor coot cougar coyote "
    "crab crane cricket crow cuckoo curlew deer dingo dolphin dormouse dove dragonfly duck dunlin "
    "eagle egret eider elk emu ermine falcon fawn ferret finch firefly flamingo fox frog gannet "
    "gazelle gecko gibbon giraffe goat goose grebe grouse gull hamster hare hawk hedgehog heron "
    "hippo hoopoe hornet horse hyena ibex ibis iguana impala jackal jaguar jay kestrel kite kiwi "
    "koala kudu ladybird lapwing lark lemming lemur leopard lion lizard llama lobster loon lynx "
    "magpie mallard manatee marmot marten martin mole mongoose moose moth mouse newt nightjar "
    "ocelot octopus okapi oriole osprey otter owl oyster panda panther parrot partridge pelican "
    "penguin petrel pheasant pigeon pika plover polecat pony puffin puma quail rabbit raccoon ram "
    "raven redstart robin rook salmon sandpiper seal shark shrew skunk sloth snipe sparrow squid "
    "squirrel starling stoat stork swallow swan swift tapir tern thrush tiger toad toucan trout "
    "turtle viper vole walrus warbler weasel whale wolf wombat wren yak zebra"
)

_ADJECTIVES: Final = tuple(_ADJECTIVE_TEXT.split())
_ANIMALS: Final = tuple(_ANIMAL_TEXT.split())
_NUMBERS: Final = 10_000


def pseudonym(account_id: str) -> str:
    """`adjective-animal-NNNN` of an account, always the same."""
    if not account_id:
        return "anon"
    hashed = hashlib.sha256(account_id.encode()).digest()
    adjective = _ADJECTIVES[int.from_bytes(hashed[0:2], "big") % len(_ADJECTIVES)]
    animal = _ANIMALS[int.from_bytes(hashed[2:4], "big") % len(_ANIMALS)]
    return f"{adjective}-{animal}-{int.from_bytes(hashed[4:8], 'big') % _NUMBERS:04d}"
