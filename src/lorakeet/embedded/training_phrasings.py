"""How people word the training requests: one template a line, {slots} for the values.

The slots of a tool's template are the arguments of its call. The tool None stands for requests that no tool serves;
what fills their slots is only talk. The held-out rows have wordings of their own, in held_out_phrasings.py.
"""

from lorakeet.embedded.phrasings import Phrasings, lines

TRAIN = Phrasings(
    templates={
        "set_reminder": lines("""
            remind me to {text} on {date}
            remind me to {text} on {date} at {time}
            remind me on {date} to {text}
            remind me on {date} at {time} to {text}
            on {date} remind me to {text}
            at {time} on {date} remind me to {text}
            can you remind me to {text} on {date}
            will you remind me that I have to {text} on {date} at {time}
            set a reminder to {text} on {date} at {time}
            set a reminder for {date} to {text}
            set a reminder at {time} on {date} to {text}
            could you set me a reminder for {date}, I have to {text}
            I need a reminder to {text} on {date}
            I need to {text} on {date}, please remind me
            I have to {text} on {date}, remind me at {time}
            on {date} at {time} I have to {text}, set a reminder
            make a reminder for {date} at {time} to {text}
            create a reminder to {text}, {date} at {time}
            put in a reminder to {text} for {date}
            new reminder for {date}, {text}
            new reminder, {text}, {date} at {time}
            a reminder for {date} please, I want to {text}
            add a reminder that I should {text} on {date} at {time}
            add a reminder for {time} on {date} to {text}
            give me a reminder on {date} to {text}
            I want to be reminded to {text} on {date}
            I would like to be reminded on {date} at {time} to {text}
            send me a reminder on {date} at {time}, I must {text}
            please remember that I have to {text} on {date}
            I might forget to {text} on {date}, so remind me at {time}
            I always forget, remind me to {text} on {date} at {time}
            I really must {text} on {date}, can you remind me
        """),
        "create_event": lines("""
            schedule {title} on {date} at {time}
            schedule {title} for {date} at {time}, {minutes} minutes
            add {title} to my calendar on {date} at {time}
            add {title} to the calendar, {date} at {time} for {minutes} minutes
            put {title} in my calendar for {date} at {time}
            put {title} on the calendar, {date}, {time}
            create an event called {title} on {date} at {time}
            create a calendar entry for {title} at {time} on {date}
            new event, {title}, {date} at {time}
            new calendar event on {date} at {time}, {title}, {minutes} minutes long
            I have {title} on {date} at {time}, add it to my calendar
            I've got {title} at {time} on {date}, please put it in the calendar
            set up {title} for {date} at {time}
            set up a {minutes} minute event on {date} at {time} called {title}
            add an event at {time} on {date} for {title}
            make a calendar event for {title}, {date}, {time}, it lasts {minutes} minutes
            on {date} at {time} I have {title}, schedule it
            there's {title} on {date} at {time}, put it in my schedule
            calendar entry for {title} please, {date} at {time}
            can you schedule {title} at {time} on {date}, it takes {minutes} minutes
            could you enter {title} in my calendar for {date} at {time}
            plan {title} for {date} at {time}
            plan {minutes} minutes of {title} on {date} at {time}
            my {title} is on {date} at {time}, add that to the calendar
            we have {title} on {date}, it starts at {time}, please schedule it
            schedule {minutes} minutes for {title} at {time} on {date}
            at {time} on {date} put {title} into my calendar
            enter an event on {date}, {title} from {time}
        """),
        "send_message": lines("""
            tell {to} {message}
            tell {to} that {message}
            can you tell {to} that {message}
            I need to tell {to} that {message}
            text {to} that {message}
            text {to} saying {message}
            text {to}, {message}
            could you text {to} that {message}
            I want to text {to}, say {message}
            send {to} a message saying {message}
            send {to} a text, {message}
            send a message to {to} saying {message}
            send a text to {to} that says {message}
            send {to} this message, {message}
            send the message {message} to {to}
            could you send {to} a quick message that {message}
            message {to} that {message}
            message {to} and say {message}
            please message {to}, {message}
            write to {to} that {message}
            write {to} a message, {message}
            write {message} in a message to {to}
            say {message} to {to} in a text
            say to {to} that {message}
            new message to {to}, {message}
            new text for {to}, {message}
            text message for {to}, it says {message}
            reply to {to} with {message}
            answer {to} that {message}
            I have news for {to}, text that {message}
        """),
        "send_money": lines("""
            send {amount} to {to}
            send {to} {amount}
            send {to} {amount} for {note}
            send {amount} to {to} for {note}
            for {note} send {to} {amount}
            can you send {to} {amount} for {note}
            I want to send {amount} to {to}
            pay {to} {amount}
            pay {to} {amount} for {note}
            pay {amount} to {to} for {note}
            please pay {to} back {amount} for {note}
            could you pay {to} {amount} for {note}
            transfer {amount} to {to}
            transfer {amount} to {to} for {note}
            transfer {to} {amount}, it's for {note}
            I owe {to} {amount}, send it please
            I owe {to} {amount} for {note}, please pay it
            give {to} {amount}
            give {to} {amount} for {note}
            make a payment of {amount} to {to}
            make a payment to {to} of {amount} for {note}
            {to} needs {amount} from me for {note}, send it
            {to} paid for {note}, send back {amount}
            {to} gets {amount} for {note}
            payment to {to}, {amount}, for {note}
            money transfer, {amount} to {to}
            I have to pay {to} for {note}, it was {amount}
            {note} cost {amount}, pay {to}
        """),
        "set_timer": lines("""
            set a timer for {minutes} minutes
            set a {minutes} minute timer
            set a {minutes} minute timer for {label}
            set a timer for {label}, {minutes} minutes
            set the timer to {minutes} minutes
            set the timer to {minutes} minutes for {label}
            start a timer for {minutes} minutes
            start a timer of {minutes} minutes for {label}
            start a {minutes} minute timer for {label}
            start timing {label}, {minutes} minutes
            timer for {minutes} minutes please
            timer for {label}, {minutes} minutes
            {minutes} minute timer
            {minutes} minutes on the timer for {label}
            can you time {minutes} minutes for {label}
            could you set a timer, it's for {label} and takes {minutes} minutes
            time {label} for {minutes} minutes
            time {minutes} minutes
            I need a timer for {minutes} minutes
            I need a {minutes} minute timer for {label}
            for {label} I need {minutes} minutes on a timer
            make a timer for {label} with {minutes} minutes
            new timer, {minutes} minutes
            new timer for {label}, {minutes} minutes
            give me a timer for {minutes} minutes
            {label} takes {minutes} minutes, start a timer
            run a timer for {minutes} minutes, it's for {label}
            tell me when {minutes} minutes are over
        """),
        "play_music": lines("""
            play {song}
            play {song} by {artist}
            can you play {song} by {artist}
            could you play {song}
            please play the song {song}
            play the song {song} by {artist}
            play me {song} from {artist}
            play {artist} with {song}
            play something by {artist}, maybe {song}
            put on {song}
            put on {song} by {artist}
            put the song {song} on please
            could you put on the track {song}
            start playing {song} by {artist}
            start the song {song}
            start {song} from {artist}
            I want to hear {song}
            I want to hear {song} by {artist}
            I want to hear {artist}, play {song}
            I'd like to listen to {song} by {artist}
            I would like some music, {song} by {artist}
            let me hear {song} by {artist}
            let me listen to {song}
            next song, {song} by {artist}
            next play {song}
            by {artist} play {song}
            music please, {song}
            we want to dance to {song} by {artist}
            my favorite song is {song} by {artist}, play it
            do you have {song} by {artist}, then play it
        """),
        "get_weather": lines("""
            what's the weather in {city}
            what's the weather in {city} on {date}
            what's the weather like in {city}
            what will the weather be like in {city} on {date}
            how is the weather in {city}
            how will the weather be in {city} on {date}
            on {date}, what's the weather in {city}
            weather in {city} please
            weather for {city} on {date}
            weather forecast for {city}
            give me the forecast for {city} on {date}
            can you give me the weather for {city}
            show me the weather in {city} on {date}
            tell me the weather in {city}
            check the weather for {city} on {date}
            I need the forecast for {city}
            I'm going to {city} on {date}, what's the weather
            I'm in {city}, how's the weather
            is it going to rain in {city} on {date}
            is it raining in {city}
            is it hot in {city}
            will it rain in {city} on {date}
            will it be sunny in {city} on {date}
            will it be cold in {city}
            how cold is it in {city}
            how hot will it be in {city} on {date}
            how windy is it in {city}
            what's the temperature in {city}
            what temperature will it be in {city} on {date}
            for {city} on {date}, what is the forecast
        """),
        "book_table": lines("""
            book a table at {restaurant} for {people} people on {date} at {time}
            book a table for {people} at {restaurant} on {date} at {time}
            book {restaurant} for {people} people on {date} at {time}
            book us into {restaurant} on {date} at {time}, we are {people}
            can you book a table at {restaurant} on {date} at {time} for {people}
            reserve a table for {people} at {restaurant}, {date} at {time}
            reserve a table at {restaurant} on {date} at {time} for {people} people
            could you reserve {restaurant} for {people} at {time} on {date}
            get us a table at {restaurant} on {date} at {time} for {people}
            get a table for {people} people at {restaurant} for {date}, {time}
            make a reservation at {restaurant} for {people} people on {date} at {time}
            make a reservation for {date} at {time} at {restaurant}, {people} people
            I need a table for {people} at {restaurant} on {date} at {time}
            I want to eat at {restaurant} with {people} people on {date} at {time}
            I'd like a reservation at {restaurant}, {date}, {time}, for {people}
            table for {people} at {restaurant} on {date} at {time} please
            a table at {restaurant} on {date}, {time}, {people} people
            we are {people} people, book {restaurant} for {date} at {time}
            we need a table for {people} at {time} on {date}, at {restaurant}
            on {date} at {time} we want to eat at {restaurant}, book for {people}
            at {restaurant} please reserve for {people} on {date} at {time}
            reservation for {people} at {restaurant} at {time} on {date}
            for {date} at {time} book a table for {people} at {restaurant}
            please find us a table for {people} at {restaurant} on {date} at {time}
        """),
        None: lines("""
            what's the capital of Australia
            who wrote Don Quixote
            how tall is Mount Everest
            how many legs does a spider have
            what's the square root of {minutes}
            tell me a joke
            tell me a story about a dragon
            tell me something about {city}
            sing me a song
            write a poem about the sea
            how are you today
            what's your name
            who are you
            do you like music
            thank you
            good morning
            never mind
            stop
            turn on the lights
            turn off the lamp in the kitchen
            turn down the heating
            set the thermostat to {minutes} degrees
            lock the front door
            open the garage
            start the vacuum cleaner
            close the blinds in the bedroom
            is the washing machine done
            take a photo
            show me my photos from {city}
            open the camera
            turn on the flashlight
            call {to}
            call {to} on the phone
            where is {to}
            who is {to}
            how old is {to}
            when does {to} get home
            how do I get to {city}
            how far is it to {city}
            show me the way to {restaurant}
            find a flight to {city} on {date}
            book a flight to {city} for {date}
            book a hotel in {city} for {date}
            I need a train to {city}
            rent a car in {city}
            order a taxi for {time}
            what time is it in {city}
            what time is it
            what day is it
            how many people live in {city}
            what's the news
            what happened in {city}
            who won the game
            what's the price of gold
            how much money is in my account
            how is the stock market
            convert {amount} to euros
            what is {amount} in yen
            order a pizza from {restaurant}
            order {people} coffees
            what's on the menu at {restaurant}
            is {restaurant} any good
            when does {restaurant} close
            what's a good recipe for soup
            how do I cook rice
            how do I get red wine out of a shirt
            translate good morning into French
            how do you say thank you in Japanese
            how do you spell accommodation
            what does ubiquitous mean
            read me my emails
            read my last message from {to}
            delete my emails
            do I have any new messages
            what's on my calendar on {date}
            cancel my reminder
            delete the event on {date}
            how much time is left
            which song is this
            who sings {song}
            write me the lyrics of {song}
            find {song} on vinyl
            turn the volume up
            play a movie
            put on the news
            show me a film with Tom Hanks
            how many calories are in an apple
            how many steps have I walked
            start my workout plan
            find my phone
            where are my keys
            where did I park
            install the update
            restart the computer
            connect to the wifi
            how do I fix a flat tire
            can dogs eat grapes
            why is the sky blue
            what's the meaning of life
            roll a dice
            flip a coin
            pick a number
            let's play a game
            buy {amount} worth of stamps
            search the web for cheap shoes
            add apples to the shopping list
            print this page
        """),
    },
    openers=("uh", "um", "hey", "okay", "okay so", "please", "so uh", "hi", "hello", "right", "um okay", "oh"),
    closers=("please", "thanks", "thank you", "okay", "if you can", "when you have a second"),
    fillers=("uh", "um", "uhm"),
)
