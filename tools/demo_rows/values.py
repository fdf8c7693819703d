"""What the demo's requests are about: names, places, texts, songs, numbers, dates and times, by slot.

Every pool exists twice, once for training and once for the held-out rows, and no value is in both. Words are listed;
numbers, dates and times are split by `is_held_out`, so that one value is held out wherever it turns up.

data in: nothing → out: VALUES, ARTISTS. Nothing here is random, and nothing here knows how a value is said.
"""

import datetime
from decimal import Decimal
from typing import Literal

from lorakeet.demo_task.recipe import YEAR
from tools.demo_rows.composed import COMPOSED, COMPOSED_ARTISTS

Split = Literal["train", "held_out"]
Value = str | int | Decimal | datetime.date | datetime.time


def is_held_out(value: int | Decimal | datetime.date | datetime.time) -> bool:
    """Say whether a number, date or time belongs to the held-out rows: about one in four or five of them does."""
    if isinstance(value, datetime.date):
        return value.timetuple().tm_yday % 5 == 0
    if isinstance(value, datetime.time):
        return (value.hour * 12 + value.minute // 5) % 5 == 0
    return int(value) % 4 == 1


def words(text: str) -> tuple[str, ...]:
    """Split a block of text at its commas."""
    return tuple(" ".join(word.split()) for word in text.split(","))


_WORDS: dict[Split, dict[str, tuple[str, ...]]] = {
    "train": {
        "to": words("""
            Adam, Alice, Amir, Andre, Anita, Ben, Bruno, Carla, Carlos, Chen, Chloe, Dana, David, Diego, Elena, Emma,
            Erik, Fatima, Felix, Fiona, Grace, Hannah, Hassan, Helen, Henry, Ines, Isaac, Ivan, Jack, James, Julia,
            Kate, Kenji, Laura, Leo, Lucy, Maria, Mark, Max, Mei, Mia, Mom, Nadia, Noah, Nora, Oliver, Omar, Paul,
            Peter, Priya, Rachel, Ravi, Rosa, Sam, Sara, Simon, Sofia, Tom, Uncle Bob, Victor, Wei, Yuki, Zoe, Aunt May,
            Doctor Singh, Professor Klein, Mrs Alvarez, Mr Ito
        """),
        "city": words("""
            Amsterdam, Athens, Austin, Bangkok, Barcelona, Berlin, Bogota, Boston, Brussels, Budapest, Cairo, Calgary,
            Cape Town, Chicago, Copenhagen, Dallas, Delhi, Denver, Dublin, Edinburgh, Florence, Geneva, Hamburg, Hanoi,
            Havana, Houston, Istanbul, Jakarta, Kyoto, Lagos, Lima, London, Los Angeles, Madrid, Manila, Melbourne,
            Mexico City, Miami, Milan, Montreal, Mumbai, Munich, Nairobi, New Orleans, New York, Oslo, Paris, Phoenix,
            Prague, Rio de Janeiro, Rome, San Diego, San Francisco, Santiago, Seattle, Seoul, Shanghai, Singapore,
            Stockholm, Sydney, Tokyo, Toronto, Vienna, Warsaw
        """),
        "restaurant": words("""
            Bella Napoli, Blue Heron, Cafe Luna, Casa Verde, Chez Marcel, Copper Kettle, Dragon Palace, El Camino, Fig
            and Olive, Golden Lotus, Green Door, Harbor House, Iron Skillet, Jade Garden, Juniper, Kitchen Nine, La
            Piazza, Lemon Tree, Little Saigon, Maple and Rye, Marigold, Mama Rosa, Mesa Grill, Moonlight Diner, Old
            Mill, Osteria Uno, Pepper Mill, Pho Corner, Red Lantern, River Cafe, Saffron, Sakura, Salt House, Silver
            Spoon, Smokehouse, Spice Route, Sunset Grill, Taco Loco, Taj Mahal, The Anchor, The Barn, The Copper Pot,
            The Fat Duck, The Green Man, The Lobster Shack, The Oak Room, Tokyo Bowl, Trattoria Gino, Twin Peaks, Villa
            Roma
        """),
        "song": words("""
            Purple Rain - Prince, Imagine - John Lennon, Dancing Queen - Abba, Hey Jude - The Beatles, Rolling in the
            Deep - Adele, Hotel California - The Eagles, Billie Jean - Michael Jackson, Like a Prayer - Madonna, Space
            Oddity - David Bowie, Redemption Song - Bob Marley, Bohemian Rhapsody - Queen, Halo - Beyonce, Fast Car -
            Tracy Chapman, Yellow - Coldplay, Thriller - Michael Jackson, Jolene - Dolly Parton, Respect - Aretha
            Franklin, Superstition - Stevie Wonder, Wonderwall - Oasis, Creep - Radiohead, Africa - Toto, Blackbird -
            The Beatles, Graceland - Paul Simon, Lean on Me - Bill Withers, Clocks - Coldplay, Ring of Fire - Johnny
            Cash, Umbrella - Rihanna, Take Five - Dave Brubeck, So What - Miles Davis, Feeling Good - Nina Simone,
            Running Up That Hill - Kate Bush, Sweet Dreams - Eurythmics, With or Without You - U2, Waterloo - Abba,
            Heroes - David Bowie, Free Fallin - Tom Petty, Landslide - Fleetwood Mac, Dreams - Fleetwood Mac, Royals -
            Lorde, Happy - Pharrell Williams, Bad Guy - Billie Eilish, Hello - Adele, Piano Man - Billy Joel, Tiny
            Dancer - Elton John, Rocket Man - Elton John, Losing My Religion - R.E.M., No Surprises - Radiohead, La Vie
            en Rose - Edith Piaf, Summertime - Ella Fitzgerald, Georgia on My Mind - Ray Charles, Moon River - Andy
            Williams, Stayin Alive - Bee Gees, September - Earth Wind and Fire, Karma Police - Radiohead, Man in the
            Mirror - Michael Jackson, Born to Run - Bruce Springsteen, Zombie - The Cranberries, Pump It - The Black
            Eyed Peas, Mas Que Nada - Sergio Mendes, Time After Time - Cyndi Lauper
        """),
        "text": words("""
            water the plants, call the dentist, pay the rent, take out the trash, buy birthday candles, renew my
            passport, pick up the dry cleaning, feed the cat, send the invoice, check the oven, book the hotel, return
            the library books, take my vitamins, charge the camera, walk the dog, order new glasses, change the air
            filter, email the landlord, cancel the gym membership, back up my laptop, wish Grandma a happy birthday,
            file the tax return, clean the fridge, get a haircut, buy milk and eggs, pick up the kids from school, wash
            the car, pack for the trip, submit the expense report, call the bank about my card, fix the bathroom tap,
            print the boarding pass, sign the lease, practice the violin, buy a gift for the wedding, move the laundry
            to the dryer, check the tire pressure, bring the charger to work, refill the prescription, update my resume,
            ask the neighbors about the fence, turn off the sprinklers, read the contract, vote in the election, buy
            stamps, register for the marathon, thank the teacher, defrost the chicken, clean out the garage, mail the
            package to my sister, reply to the recruiter, test the smoke alarm, bake a cake, trim the hedge, measure the
            windows, buy cat food, stretch my back, pay the electric bill, check in for my flight, write a thank you
            card, pick tomatoes, review the slides, feed the sourdough, drop off the donation boxes, schedule a vet
            visit for the dog, get cash for the babysitter, look over the insurance papers, return the drill to the
            neighbor, bring snacks for the team, order a new water bottle
        """),
        "title": words("""
            lunch with Omar, budget review, piano lesson, team standup, dentist appointment, yoga class, parent teacher
            meeting, coffee with Elena, project kickoff, book club, soccer practice, job interview, doctor visit, wine
            tasting, staff meeting, board game night, car inspection, marketing call, dinner with the neighbors, swim
            lesson, sales training, haircut, flight to Boston, design review, choir rehearsal, movie night, physical
            therapy, open house, salsa class, quarterly planning, birthday party for Leo, eye exam, house viewing,
            guitar lesson, breakfast with Mom, security audit, product demo, career fair, garden tour, pottery workshop,
            baby shower, math tutoring, client presentation, tennis match, farewell party, school concert, fire drill,
            kickoff call with the Berlin team, volunteer shift, vaccination, drama rehearsal, phone call with the bank,
            one on one with Priya, hiring committee, picnic with the kids
        """),
        "message": words("""
            I'm on my way, I'll be ten minutes late, dinner is ready, the meeting moved to the big room, I love the
            photos, I can't make it tonight, the train is delayed, we are out of coffee, I left the keys under the mat,
            the kids are asleep, I got the job, the package arrived, I'm stuck in traffic, the game starts soon, I'm at
            the airport, the car is in the shop, lunch is on me, I need the report today, we won, the door code has
            changed, I'm feeling better, the plumber is here, I forgot my umbrella, the cake was delicious, class is
            canceled, my phone is almost dead, I found your scarf, the store is closed, we miss you, the file is too
            large, I will call back later, the soup needs more salt, I bought the tickets, the baby is walking, we are
            waiting outside, I already fed the dog, I'm running out of time, your order is ready, I finished the book,
            the elevator is broken, the rehearsal went well, I can pick up the kids, my flight got canceled, the wifi is
            down again, I'll bring dessert, the printer is jammed, the boss liked the idea, we need more chairs, I
            passed the exam, the heating is fixed, there is a spider in the kitchen, I'm taking the bus, the party is a
            surprise, thanks for the ride, the doctor says all is fine, I'm going to bed early, the laundry is done,
            it's snowing up here, I'd rather stay home, you left your jacket at my place
        """),
        "note": words("""
            the concert tickets, lunch, gas, the pizza, the electricity bill, babysitting, the birthday gift, rent, the
            taxi, groceries, the hotel room, coffee, the train tickets, guitar lessons, the museum tour, drinks, the
            book, parking, the phone bill, dog walking, the ski trip, cat sitting, the new lamp, movie night, the
            flowers, the internet bill, breakfast, the cake, my half of dinner, the repair, the paint, gardening, the
            headphones, the cleaning, tutoring, the bike, the deposit, the yoga class, the wine, printing
        """),
        "label": words("""
            pasta, eggs, laundry, tea, homework, pizza, the oven, bread, a nap, yoga, rice, cookies, the parking meter,
            studying, a workout, meditation, the sauna, potatoes, the face mask, coffee, the chicken, a break, the
            dishwasher, reading, the quiz, the soup, stretching, the cake, plank, lasagna, the grill, piano practice,
            the hair dye, screen time, brownies, the debate
        """),
    },
    "held_out": {
        "to": words("""
            Abigail, Bjorn, Camille, Dmitri, Esther, Farid, Gloria, Hugo, Imani, Jorge, Kiran, Lena, Marcus, Naomi,
            Olga, Pablo, Quentin, Rebecca, Stefan, Tara, Umar, Vera, Walter, Yasmin, Grandpa, Doctor Chang, Mrs Okafor,
            Coach Daniels
        """),
        "city": words("""
            Portland, Helsinki, Lisbon, Nashville, Atlanta, Buenos Aires, Zurich, Marrakesh, Vancouver, Osaka, Krakow,
            Naples, Philadelphia, Reykjavik, Salt Lake City, Cologne, Detroit, Glasgow, Honolulu, Auckland, Valencia,
            Minneapolis, Beirut, Tel Aviv
        """),
        "restaurant": words("""
            Bamboo House, Cinnamon Club, Don Pepe, Eagle Tavern, Giovanni's, Hummus Bar, Kabuki, Le Jardin, Magnolia,
            Noodle Barn, Olive Branch, Pine Street Kitchen, Rosemary, Stone Oven, Tandoori Nights, The Black Swan, The
            Gilded Fork, The Windmill, Umami, Wild Thyme, Zen Garden, Blue Ox, Casa Lupita, Station Eleven
        """),
        "song": words("""
            Smooth Operator - Sade, Sultans of Swing - Dire Straits, No Woman No Cry - The Fugees, Dream On - Aerosmith,
            Heart of Gold - Neil Young, Both Sides Now - Joni Mitchell, Hallelujah - Leonard Cohen, Tears in Heaven -
            Eric Clapton, Take On Me - Aha, Creeping Death - Metallica, Gracias a la Vida - Mercedes Sosa, Night and Day
            - Frank Sinatra, What a Wonderful World - Louis Armstrong, Brown Sugar - The Rolling Stones, Levitating -
            Dua Lipa, Shake It Off - Taylor Swift, Black Velvet - Alannah Myles, Video Games - Lana Del Rey, Walking on
            Sunshine - Katrina and the Waves, Mr Blue Sky - Electric Light Orchestra, Seven Nation Army - The White
            Stripes, Pata Pata - Miriam Makeba, Stand by Me - Ben E King, Valerie - Amy Winehouse
        """),
        "text": words("""
            call the plumber, renew the car insurance, buy flowers for Yasmin, return the rental skis, take the bread
            out of the freezer, send the thesis draft, descale the kettle, order printer ink, cancel the magazine
            subscription, pick up my shoes from the cobbler, update the family tree, pay the parking fine, replace the
            furnace filter, sharpen the kitchen knives, confirm the moving van, feed the turtle, upload the homework,
            rotate the mattress, invite the cousins to the barbecue, apply for the scholarship, empty the dehumidifier,
            collect the concert wristbands, bleed the radiators, proofread the newsletter
        """),
        "title": words("""
            annual checkup, lunch with Camille, roof inspection, chess tournament, sprint retrospective, violin recital,
            dog grooming, mortgage appointment, pilates, harvest festival, thesis defense, reading group, visa
            interview, carpool handover, town hall, bridge club, press briefing, family reunion, blood donation,
            orchestra audition, webinar on solar panels, kayak trip, interview with Naomi, ballet class
        """),
        "message": words("""
            the boat leaves without us, I'm bringing my own chair, the landlord agreed, grandma is out of surgery, I
            lost my wallet, we need to postpone the hike, my mother says hello, the oven door won't close, I saved you a
            seat, the museum is free this weekend, the keys are with the porter, I'm almost there, nobody fed the
            rabbits, the judge accepted the plea, I'm allergic to shrimp, the blue paint has run out, I'd love to join,
            the ferry is full, your glasses are on the piano, I burned the toast again, the gate is still locked, our
            team lost badly, the tent has a hole, I'm proud of you
        """),
        "note": words("""
            the ferry ride, sushi, the hospital parking, the firewood, the costume, violin strings, the campsite, the
            translation, fuel, the wedding present, the vet, popcorn, the moving boxes, the blender, ballet shoes, the
            window cleaner, the escape room, tuition, the sunscreen, the locksmith, roses, the barbecue, swimming, the
            lawn mower
        """),
        "label": words("""
            quinoa, the turkey, ironing, the bath, boiled carrots, journaling, the chess clock, muffins, the incense,
            vocabulary drills, a power nap, the sprinkler, lentils, the hair mask, jump rope, the pressure cooker,
            couscous, the ice pack, handstands, dumplings, the cupcakes, the laminator, chin ups, trumpet practice
        """),
    },
}
"""Songs are listed as "title - artist"."""

_CENTS = ("", "", "", ".15", ".25", ".45", ".75", ".95", ".99")

_NUMBERS: dict[str, list[int | Decimal | datetime.date | datetime.time]] = {
    "people": [*range(2, 21)],
    "minutes": [*range(2, 21), *range(25, 121, 5)],
    "amount": [Decimal(f"{dollars}{_CENTS[dollars % len(_CENTS)]}") for dollars in range(3, 400)],
    "date": [datetime.date(YEAR, 1, 1) + datetime.timedelta(days) for days in range(365)],
    "time": [datetime.time(hour, minute) for hour in range(7, 23) for minute in range(0, 60, 5)],
}

ARTISTS: dict[str, str] = COMPOSED_ARTISTS | dict(pair.split(" - ") for pools in _WORDS.values() for pair in pools["song"])
"""Who sings what."""


def _pools(split: Split) -> dict[str, tuple[Value, ...]]:
    numbers = {
        slot: tuple(value for value in pool if is_held_out(value) == (split == "held_out")) for slot, pool in _NUMBERS.items()
    }
    listed = {**_WORDS[split], "song": tuple(pair.split(" - ")[0] for pair in _WORDS[split]["song"])}
    if split == "train":
        listed = {slot: tuple(dict.fromkeys((*values, *COMPOSED[slot]))) for slot, values in listed.items()}
    return {**listed, **numbers}


VALUES: dict[Split, dict[str, tuple[Value, ...]]] = {"train": _pools("train"), "held_out": _pools("held_out")}
"""Values by split and slot. A song's artist follows from the song."""
