"""How people word the held-out requests: other templates, politeness and hesitations than in training_phrasings.py."""

from lorakeet.embedded.phrasings import Phrasings, lines

HELD_OUT = Phrasings(
    templates={
        "set_reminder": lines("""
            don't let me forget to {text} on {date}
            make sure I don't forget to {text} on {date} at {time}
            give me a nudge at {time} on {date} to {text}
            ping me on {date}, I need to {text}
            I keep forgetting to {text}, nudge me on {date} at {time}
            on {date} I'm supposed to {text}, don't let it slip my mind
            jog my memory on {date} at {time} so I can {text}
            alert me on {date} at {time}, it will be time to {text}
            help me remember to {text} on {date}
            it's vital that I {text} on {date}, keep me on track with a reminder
        """),
        "create_event": lines("""
            pencil in {title} for {date} at {time}
            block {minutes} minutes on {date} at {time} for {title}
            block off {time} on {date} for {title}
            my diary needs {title} on {date} at {time}
            my calendar should show {title} on {date} at {time}
            save the date for {title}, {date}, {time}
            keep {minutes} minutes free for {title} on {date} at {time}
            mark {title} down for {date} at {time}
            stick {title} in my agenda at {time} on {date}
            slot in {title} on {date}, starting at {time}, lasting {minutes} minutes
        """),
        "send_message": lines("""
            let {to} know that {message}
            let {to} know {message}
            drop {to} a line that {message}
            shoot {to} a note saying {message}
            inform {to} that {message}
            pass it on to {to} that {message}
            get word to {to} that {message}
            {to} should hear from me that {message}
            {to} doesn't know yet that {message}, send a message
            fire off a text to {to} along the lines of {message}
        """),
        "send_money": lines("""
            settle up with {to}, it's {amount} for {note}
            wire {amount} over to {to}
            wire {to} {amount} because of {note}
            shoot {amount} across to {to} for {note}
            reimburse {to} {amount} for {note}
            hand over {amount} to {to}
            {to} covered {note} for me, return the {amount}
            let {to} have {amount} for {note}
            get {amount} into the account of {to}
            my debt to {to} is {amount}, clear it
        """),
        "set_timer": lines("""
            count down {minutes} minutes
            count down from {minutes} minutes for {label}
            put {minutes} minutes on the clock for {label}
            buzz me in {minutes} minutes
            let me know once {minutes} minutes are up
            beep after {minutes} minutes, I'm doing {label}
            ring when {minutes} minutes have passed
            {label} should be done in {minutes} minutes, watch the clock
            I've started {label}, stop me after {minutes} minutes
            have the alarm go off {minutes} minutes from now for {label}
        """),
        "play_music": lines("""
            blast {song} by {artist}
            let's have {song} from {artist}
            queue up {song}
            I'm in the mood for {song} by {artist}
            how about a little {song}
            throw on {song}
            spin {song} by {artist}
            get {song} going on the speakers
            I could use some {artist}, go with {song}
            turn up {song} by {artist}
        """),
        "get_weather": lines("""
            do I need an umbrella in {city} on {date}
            should I pack a warm coat for {city} on {date}
            any snow expected in {city} on {date}
            are there storms around {city}
            is {city} going to be warm on {date}
            what are the skies doing over {city}
            would {date} be dry enough for a picnic in {city}
            how's it looking outside in {city}
            what conditions can we expect in {city} on {date}
            does {city} get any sunshine on {date}
        """),
        "book_table": lines("""
            we'd love to dine at {restaurant} on {date} at {time}, party of {people}
            see if {restaurant} can seat {people} of us on {date} at {time}
            there will be {people} of us eating at {restaurant} on {date} at {time}
            grab a spot for {people} at {restaurant}, {date}, {time}
            call ahead to {restaurant}, {people} guests, {date} at {time}
            dinner for {people} at {restaurant} on {date}, let's say {time}
            hold {people} seats at {restaurant} for {date} at {time}
            {people} of us would like to go out to {restaurant} at {time} on {date}
            secure {restaurant} for {people} diners on {date} at {time}
            on {date} take care of a dinner reservation, {people} guests, {restaurant}, {time}
        """),
        None: lines("""
            which river runs through {city}
            who painted the Mona Lisa
            how deep is the ocean
            what's the boiling point of lead
            explain gravity to a child
            recite a haiku about autumn
            are you a robot
            you're very kind
            dim the chandelier in the dining room
            switch off the fan
            water level of the aquarium please
            dial the number of {to}
            what's {to} up to these days
            is there a bus to {city} on {date}
            navigate to {city}
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
