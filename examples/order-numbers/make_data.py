"""Writes train.jsonl, valid.jsonl and test.jsonl: support messages and the order number each one is about.

Run it again and the same files come out. Nothing crosses from one split to another: neither a sentence,
nor a product, nor a person, nor an order number (its last digit belongs to its split).
"""

import json
import random
from pathlib import Path

HERE = Path(__file__).resolve().parent

INSTRUCTION = "Extract the order number from the customer's message. Answer as JSON."
# Two worked examples stand before every message, so all prompts share one beginning.
EXAMPLES = [
    ("Ticket 5512: the blender from order QF-20817 leaks. I paid 64.90.", "QF-20817"),
    ("My phone is 555-0142. Please cancel order LD-73395, invoice 40021.", "LD-73395"),
]


def listed(text: str) -> list[str]:
    """Split a comma-separated list."""
    return text.split(", ")


# What each split may say. {order} is the answer; every other number is there to mislead.
SENTENCES = {
    "train": {
        "rows": 160,
        "last_digits": "012345",
        "people": listed(
            "Alma, Bruno, Carla, Dev, Edda, Femi, Greta, Hugo, Ines, Jonas, Kira, Lars, "
            "Mona, Nuri, Olga, Pavel"
        ),
        "products": listed(
            "kettle, desk lamp, rain jacket, coffee grinder, backpack, office chair, "
            "wall clock, phone case, garden hose, bread knife, yoga mat, water filter"
        ),
        "ask": [
            "Where is order {order}?",
            "I want to return order {order}.",
            "Order {order} has not arrived yet.",
            "The {product} from order {order} came broken.",
            "Please cancel {order} before it ships.",
            "Can you change the address on {order}?",
            "I never got a receipt for order {order}.",
            "My order {order} is missing the {product}.",
            "You charged me twice for {order}.",
            "The {product} in {order} is the wrong size.",
            "Could you check on {order} for me?",
            "This is about order number {order}.",
            "I'd like my money back for {order}.",
            "The order is {order}, a {product}.",
            "Nothing has come of {order} so far.",
            "The box of {order} was wet.",
            "Tell me when {order} leaves your store.",
            "Somebody else signed for {order}.",
            "I would rather not have {order} any more.",
            "Why does {order} take so long?",
        ],
        "around": [
            "Call me on {phone}.",
            "I paid {amount} on {date}.",
            "My customer number is {customer}.",
            "The invoice says {invoice}.",
            "The courier gave me tracking {tracking}.",
            "I already wrote in ticket {ticket}.",
            "I live at {house} Mill Road.",
            "The model on the box is {model}.",
            "I bought {quantity} of them on {date}.",
            "My card ends in {card}.",
            "Your colleague mentioned case {ticket}.",
            "The post office lists {tracking}.",
            "Parcel {tracking} went back to you.",
            "Receipt {invoice} is attached.",
            "I am member {customer}.",
            "The sticker reads {model}.",
            "The gift card was {card}.",
            "With shipping it came to {amount}.",
        ],
        "greeting": ["Hello, {name} here.", "Hi,", "Good morning.", "Dear team,", "", "This is {name}."],
    },
    "valid": {
        "rows": 60,
        "last_digits": "67",
        "people": listed("Rosa, Sami, Tilda, Uwe, Vera, Wim"),
        "products": listed("toaster, bike lock, picture frame, sleeping bag, soap dish"),
        "ask": [
            "When will {order} be delivered?",
            "Half of {order} is still not here.",
            "I would like to exchange the {product} I got with {order}.",
            "Has order {order} been sent out?",
            "Something is wrong with my {product}, order {order}.",
            "Kindly refund {order}.",
        ],
        "around": [
            "You can reach me at {phone}.",
            "The total was {amount}.",
            "Reference {ticket} is closed by now.",
            "Client id {customer}.",
            "The parcel label reads {tracking}.",
            "There is no {invoice} in my inbox.",
        ],
        "greeting": ["Hey there,", "{name} again.", "", "Good evening."],
    },
    "test": {
        "rows": 120,
        "last_digits": "89",
        "people": listed("Xenia, Yann, Zoe, Abel, Bea, Cleo, Dario, Elif"),
        "products": listed("tea pot, hiking boot, table fan, notebook, lunch box, door mat, hand mixer, rug"),
        "ask": [
            "Any news on {order}?",
            "The parcel with {order} was opened on the way.",
            "I have been waiting two weeks for order {order}.",
            "Please send me the bill for {order} once more.",
            "A {product} was left out of order {order}.",
            "Do not ship {order}, I have changed my mind.",
            "Is it too late to add a {product} to {order}?",
            "What is the status of my order {order}?",
            "I was sent a {product} I did not ask for with {order}.",
            "The discount is not on order {order}.",
        ],
        "around": [
            "My number is {phone}.",
            "It cost {amount} in all.",
            "Account {customer}.",
            "The bill has number {invoice}.",
            "DHL knows it as {tracking}.",
            "We spoke about it under {ticket} on {date}.",
            "Serial number {model}.",
            "The voucher was {card}.",
        ],
        "greeting": ["Hi folks,", "Greetings from {name}.", "", "Good afternoon, {name} speaking."],
    },
}


def digits(rng: random.Random, count: int) -> str:
    """Return `count` random digits, the first not zero."""
    return str(rng.randrange(10 ** (count - 1), 10**count))


def order_number(rng: random.Random, last_digits: str) -> str:
    """Return an order number such as QF-20817, ending in one of its split's digits."""
    letters = "".join(rng.choice("ABCDEFGHJKLMNPQRSTUVWXYZ") for _ in range(2))
    return f"{letters}-{digits(rng, 4)}{rng.choice(last_digits)}"


def message(rng: random.Random, split: dict) -> tuple[str, str]:
    """Return one support message and the order number it is about."""
    order = order_number(rng, split["last_digits"])
    slots = {
        "order": order,
        "name": rng.choice(split["people"]),
        "product": rng.choice(split["products"]),
        "phone": f"555-{digits(rng, 4)}",
        "amount": f"{rng.randrange(12, 480)}.{rng.choice(['00', '50', '90', '95'])}",
        "date": f"{rng.randrange(1, 29)} {rng.choice(['March', 'May', 'June', 'October'])}",
        "customer": digits(rng, 6),
        "invoice": f"IN-{digits(rng, 5)}",
        "tracking": f"{rng.choice(['RR', 'CP', 'JD'])}{digits(rng, 7)}",
        "ticket": digits(rng, 4),
        "model": f"{rng.choice('KMTV')}{digits(rng, 3)}",
        "house": rng.randrange(2, 120),
        "quantity": rng.randrange(2, 9),
        "card": digits(rng, 4),
    }
    asked = rng.choice(split["ask"])
    around = rng.sample(split["around"], 2)
    body = [around[0], asked, around[1]] if rng.random() < 0.6 else [asked, *around]
    text = " ".join(part for part in [rng.choice(split["greeting"]), *body] if part)
    return text.format(**slots), order


def row(text: str, order: str) -> dict:
    """Return one line of a training file: the prompt, and what the grader compares the answer with."""
    turns = [{"role": "system", "content": INSTRUCTION}]
    for question, answer in EXAMPLES:
        turns.append({"role": "user", "content": question})
        turns.append({"role": "assistant", "content": json.dumps({"order_number": answer})})
    return {"messages": [*turns, {"role": "user", "content": text}], "order_number": order}


def main() -> None:
    """Write the three files beside this script."""
    for name, split in SENTENCES.items():
        rng = random.Random(f"order-numbers {name}")
        rows: dict[str, str] = {}
        while len(rows) < split["rows"]:
            text, order = message(rng, split)
            rows.setdefault(text, order)
        lines = [json.dumps(row(text, order), ensure_ascii=False) + "\n" for text, order in rows.items()]
        (HERE / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
