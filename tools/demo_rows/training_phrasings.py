"""How people word the training requests: one template a line, {slots} for the values.

The slots of a tool's template are the arguments of its call, but for what a timer or a payment is for, which is only
talk. The tool None stands for requests that no tool serves; all that fills their slots is talk. The held-out rows have
wordings of their own, in held_out_phrasings.py.
"""

from tools.demo_rows.phrasings import Phrasings, lines
from tools.demo_rows.unserved_phrasings import UNSERVED

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
            don't forget to remind me on {date} to {text}
            I must not forget to {text} on {date}
            never let me forget, on {date} at {time} I have to {text}
            nudge me on {date}, I have to {text}
            nudge me at {time} on {date} to {text}
            ping me to {text} at {time} on {date}
            ping me about this on {date}, {text}
            alert me to {text} on {date}
            I want an alert on {date} at {time} to {text}
            I keep putting it off, remind me on {date} to {text}
            I tend to forget things, so on {date} tell me to {text}
            I'm supposed to {text} on {date}, remind me please
            notify me on {date} at {time} that I need to {text}
            it's important, remind me to {text} on {date}
            I need your help, on {date} I have to {text}, remind me at {time}
            let me know on {date} that I should {text}
            let me know at {time} on {date}, it's time to {text}
            make sure that I {text} on {date}
            make sure I remember on {date} at {time} to {text}
            keep in mind for me that I have to {text} on {date}
            I don't want to miss it, {text}, {date} at {time}, remind me
            I'm bad at remembering, on {date} I have to {text}
            jog my memory on {date}, {text}
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
            pencil {title} into my calendar for {date} at {time}
            block my calendar for {title}, {date} at {time}
            block out some time for {title}, {date} at {time}, {minutes} minutes
            book {minutes} minutes of {title} into my day on {date} at {time}
            mark my calendar, {title}, {date}, {time}
            mark {date} at {time} in the calendar, {title}
            write {title} in my diary, {date} at {time}
            my diary for {date} gets {title} at {time}
            note {title} in my agenda, {date}, {time}
            put down {title}, {date}, {time}
            save a slot for {title}, {date} at {time}
            save me {minutes} minutes for {title} at {time} on {date}
            keep {date} at {time} open for {title}
            keep me free for {title} on {date}, {time}, {minutes} minutes
            I'm busy with {title} on {date} at {time}, note that down
            let's do {title} on {date} at {time} for {minutes} minutes
            {title} on {date} at {time}, add that
            {title}, {date}, {time}, {minutes} minutes, into the calendar please
            {title} starts at {time} on {date}, put it down
            {title} will be on {date} at {time}, schedule that
            slot {title} into my schedule, {time} on {date}
            drop {title} into my agenda on {date} at {time}
            my calendar for {date} needs {title} from {time}, lasting {minutes} minutes
            an appointment, {title}, at {time} on {date}
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
            please let {to} know at once, {message}
            inform {to} please, {message}
            give {to} a message, {message}
            give the message to {to} that {message}
            drop {to} a message, {message}
            drop a note to {to} saying {message}
            shoot {to} a text, {message}
            shoot a message over to {to} that {message}
            pass this on to {to}, {message}
            pass the word to {to}, {message}
            get a message to {to} saying {message}
            update {to}, {message}
            notify {to} that {message}
            ping {to} and say that {message}
            {to} has to know that {message}
            {to} needs to hear that {message}
            {to} wants some news, write that {message}
            {to} doesn't know that, so text {message}
            get in touch with {to} and say {message}
            contact {to} and mention that {message}
            some news for {to}, {message}, let them know
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
            settle my debt with {to}, {amount}
            settle the bill with {to}, {amount} for {note}
            wire the money to {to}, {amount}
            wire {amount} for {note} to {to}
            reimburse {to} for {note}, {amount}
            pay back {to}, {amount} for {note}
            {to} spent {amount} on {note}, pay that back
            {to} bought {note}, give back {amount}
            {to} covered me the other day, return {amount}
            {to} covered the cost of {note}, that's {amount}
            {to} lent me {amount}, send it back
            shoot {to} some money for {note}, {amount}
            hand {to} {amount}
            hand {amount} to {to} for {note}
            let {to} have the {amount} I owe
            let {to} get {amount} from me for {note}
            get {amount} over to {to} for {note}
            put {amount} in the account of {to} for {note}
            my part of {note} is {amount}, send it to {to}
            clear what I owe {to}, {amount}
            my debt for {note} is {amount}, pay {to}
            have {to} paid {amount}
            {amount} goes to {to}
            {to} is waiting for {amount}, pay now
            {to} wants {amount} from me
            I promised {to} {amount}, transfer that
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
            count {minutes} minutes for me
            do a {minutes} minute countdown for {label}
            start a countdown of {minutes} minutes
            countdown for {label}, {minutes} minutes
            put the timer on {minutes} minutes
            put {label} on a {minutes} minute timer
            {minutes} minutes on the clock please
            clock {minutes} minutes for {label}
            watch the clock, {label} takes {minutes} minutes
            wake me in {minutes} minutes
            ring in {minutes} minutes
            ring a bell for {label} in {minutes} minutes
            beep in {minutes} minutes
            beep when {label} is done, that's {minutes} minutes
            buzz after {minutes} minutes of {label}
            alarm in {minutes} minutes
            set an alarm to go off in {minutes} minutes
            the alarm should ring for {label} in {minutes} minutes
            let me know in {minutes} minutes
            let me know when {label} has had {minutes} minutes
            notify me after {minutes} minutes of {label}
            {label} needs {minutes} minutes, set the timer
            {label} will be ready in {minutes} minutes, time it
            {label} should take {minutes} minutes, start the countdown
            I'm starting {label} now, time {minutes} minutes
            I've put on {label}, give me {minutes} minutes
            stop me when {minutes} minutes have gone by
            the alarm goes off after {minutes} minutes
            tell me after {minutes} minutes have gone
            I have {minutes} minutes, time that
            only {minutes} minutes, start now
            remind me when {minutes} minutes are gone
            keep the time, {minutes} minutes
            after {minutes} minutes make a noise
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
            queue {song} by {artist}
            queue the track {song} next
            add {song} by {artist} to the queue
            blast the song {song}
            spin the record {song}
            throw {song} on the stereo
            turn on {song} by {artist}
            turn on some {artist}, {song} please
            let's listen to {song}
            let's hear {song} by {artist}
            how about some music, {song} by {artist}
            how about {song} now
            I'm in the mood for music, play {song}
            I'm in a mood for {artist}, maybe {song}
            I feel like hearing {artist}, {song} please
            I could listen to {song} all day, play it
            I could do with some music, {song} by {artist}
            give me {song} by {artist}
            give us a bit of {song}
            get me {song} from {artist} on the stereo
            get the speakers going, play {song}
            go for {song} by {artist}
            go ahead with {song}
            some {artist} please, {song}
            time for {song} by {artist}
            stream {song} by {artist}
            {song} please
            {song} by {artist} please
            crank up {song}
            turn it up, {song} by {artist}
            get {song} on now
            have {song} on
            {song}, play that one
            {song}, loud please
            bring on {song}
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
            do I need a jacket in {city}
            do I need sunscreen on {date} in {city}
            I'm flying to {city} on {date}, will I need an umbrella
            should I bring an umbrella, I'm in {city} on {date}
            should I wear a coat in {city}
            should I pack for snow, I'm off to {city} on {date}
            what should I wear in {city} on {date}
            is there snow in {city}
            is snow expected on {date} in {city}
            any rain in {city}
            any clouds coming to {city} on {date}
            are there clouds over {city}
            are storms coming to {city} on {date}
            is there a storm in {city}
            is it warm in {city}
            is it dry on {date} in {city}
            is {city} sunny
            is {city} cold on {date}
            how are the skies in {city} on {date}
            does it snow in {city} on {date}
            does {city} have rain
            what's it like outside in {city}
            what are the conditions in {city}
            what conditions are forecast on {date} in {city}
            can I go for a walk in {city} on {date} or will it rain
            can we have a picnic in {city} on {date}, how's the weather
            would an umbrella help in {city}
            would it be too cold for a picnic in {city} on {date}
            how does {city} look on {date}, sunny or rainy
            sunshine in {city} on {date}, yes or no
            tell me if it will freeze in {city} on {date}
            warm or cold in {city} on {date}
            umbrella weather in {city} on {date} or not
            what does the sky look like in {city}
            I wonder about the weather in {city}
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
            we'd like to have dinner at {restaurant} on {date} at {time}, we are {people}
            we will be {people} for dinner at {restaurant} on {date} at {time}
            dinner at {restaurant}, {people} people, {date} at {time}
            dinner on {date} at {restaurant}, {time}, for {people} please
            lunch for {people} at {restaurant} at {time} on {date}
            a party of {people} at {restaurant}, {date} at {time}
            party of {people}, {restaurant}, {date}, {time}
            {people} guests for {restaurant} on {date} at {time}
            {people} people want dinner at {restaurant} at {time} on {date}
            {people} seats at {restaurant} please, {date}, {time}
            {people} of us are going to {restaurant} on {date}, {time}, get a table
            can {restaurant} take {people} guests on {date} at {time}
            does {restaurant} have a table for {people} on {date} at {time}
            check if {restaurant} has room for {people}, {date} at {time}
            see whether there's a table at {restaurant} for {people}, {time}, {date}
            ask {restaurant} for a table, {people} guests, {date}, {time}
            call {restaurant} and book for {people} on {date} at {time}
            grab us a table at {restaurant} for {people}, {date} at {time}
            save {people} seats for us on {date} at {restaurant}, {time}
            hold a table for {people} on {date} at {time} at {restaurant}
            secure a table at {restaurant} for {date}, {time}, {people} diners
            sort out dinner at {restaurant} for {people} on {date} at {time}
            let's go out to {restaurant} on {date} at {time}, {people} of us
            let's say {time} on {date} at {restaurant}, table for {people}
            there are {people} of us, {restaurant}, {date} at {time}
            we want to dine at {restaurant} with {people} at {time} on {date}
        """),
        None: UNSERVED,
    },
    openers=("uh", "um", "hey", "okay", "okay so", "please", "so uh", "hi", "hello", "right", "um okay", "oh"),
    closers=("please", "thanks", "thank you", "okay", "if you can", "when you have a second"),
    fillers=("uh", "um", "uhm"),
)
