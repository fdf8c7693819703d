"""How people word the held-out requests: other templates, politeness and hesitations than in training_phrasings.py."""

from tools.demo_rows.phrasings import Phrasings, lines

HELD_OUT = Phrasings(
    templates={
        "set_reminder": lines("""
            don't let me forget to {text} on {date}
            make sure I don't forget to {text} on {date} at {time}
            give me a nudge at {time} on {date} to {text}
            ping me on {date} so I remember to {text}
            I keep forgetting to {text}, nudge me on {date} at {time}
            on {date} I'm supposed to {text}, please notify me
            {date}, {time}, I have to {text}, give me an alert
            help me remember to {text} on {date}
            jog my memory on {date} at {time} that I must {text}
            it's important that I {text} on {date}, so don't let me miss it
        """),
        "create_event": lines("""
            the calendar should show {title} on {date} at {time}
            reserve {minutes} minutes in the calendar on {date} at {time} for {title}
            an event please, {title}, {date}, from {time}
            my calendar is missing {title} on {date} at {time}
            I'd like {title} scheduled for {date} at {time}
            keep {minutes} minutes free in my schedule for {title} on {date} at {time}
            mark {title} in the calendar for {date} at {time}
            arrange an event for {title} at {time} on {date}
            get {title} onto the schedule, {date}, starting at {time}, lasting {minutes} minutes
            please have {title} on my calendar by {date} at {time}
        """),
        "send_message": lines("""
            let {to} know that {message}
            let {to} know {message}
            drop {to} a line that {message}
            shoot {to} a note saying {message}
            inform {to} that {message}
            pass it on to {to} that {message}
            get word to {to} that {message}
            {to} should know that {message}
            {to} doesn't know yet that {message}, send a text
            give {to} the news that {message}
        """),
        "send_money": lines("""
            settle up with {to}, it's {amount} for {note}
            wire {amount} over to {to}
            pay {to} what {note} cost, {amount}
            move {amount} to the account of {to}, that's for {note}
            reimburse {to} the {amount} spent on {note}
            hand over {amount} to {to}
            {to} covered {note} for me, pay the {amount} back
            let {to} have {amount} for {note}
            transfer {amount} into the account of {to}
            please get {to} paid, {amount} exactly
        """),
        "set_timer": lines("""
            count down {minutes} minutes
            count down from {minutes} minutes for {label}
            a timer please, {label} needs {minutes} minutes
            the timer should ring in {minutes} minutes
            let me know once {minutes} minutes are up
            beep after {minutes} minutes, it's for {label}
            ring when {minutes} minutes have passed
            {label} should be done in {minutes} minutes, set a timer
            start the clock for {label}, {minutes} minutes
            have the timer go off in {minutes} minutes for {label}
        """),
        "play_music": lines("""
            blast {song} by {artist}
            let's have the song {song} by {artist}
            queue up {song}
            I'm in the mood for {song} by {artist}
            how about playing {song}
            throw on the track {song}
            spin {song} by {artist}
            get {song} playing on the speakers
            I could use some music, {song} from {artist}
            give {song} by {artist} a play
        """),
        "get_weather": lines("""
            do I need an umbrella in {city} on {date}
            should I pack a warm coat for {city} on {date}
            any snow expected in {city} on {date}
            are there storms around {city}
            is {city} going to be warm on {date}
            what's the sky like over {city}
            would {date} be dry enough for a picnic in {city}
            how's the weather looking in {city}
            what conditions can we expect in {city} on {date}
            does {city} get any sunshine on {date}
        """),
        "book_table": lines("""
            we'd love to dine at {restaurant} on {date} at {time}, table for {people}
            see if {restaurant} has a table for {people} on {date} at {time}
            there will be {people} of us eating at {restaurant} on {date} at {time}, reserve it
            we want a table at {restaurant} that seats {people} on {date} at {time}
            a dinner reservation at {restaurant} please, {people} guests, {date} at {time}
            dinner table for {people} at {restaurant} on {date}, let's say {time}
            hold {people} seats at {restaurant} for {date} at {time}
            {people} of us would like a table at {restaurant} at {time} on {date}
            secure us {people} places at {restaurant} on {date} at {time}
            on {date} get us a dinner reservation, {people} guests, {restaurant}, {time}
        """),
        None: lines("""
            which river runs through {city}
            who painted the Mona Lisa
            how deep is the ocean
            how hot must lead be to melt
            explain gravity to a child
            recite a haiku about autumn
            are you a robot
            you're very kind
            dim the chandelier in the dining room
            switch off the fan
            water level of the aquarium please
            dial the number of {to}
            what's {to} up to these days
            can I still get a bus to {city} on {date}
            plot a route to {city}
            what language do they speak in {city}
            has the stock of Apple gone up
            how do I peel a mango
            what rhymes with orange
            is {restaurant} open on Sundays
            scan this document
            empty the trash folder
            what is the score of the match
            how long do elephants live
        """),
    },
    openers=("erm", "well", "listen", "alright", "hmm", "er okay", "yeah so", "quick one"),
    closers=("cheers", "would you", "if that's alright", "many thanks", "that's all"),
    fillers=("er", "erm"),
)
