"""What people ask of an assistant that no tool of the demo serves: questions, small talk, and other errands."""

from tools.demo_rows.phrasings import lines

UNSERVED = lines("""
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
    who invented the telephone
    who was the first man on the moon
    who discovered penicillin
    which is the largest planet
    which country has the most people
    which bus goes to {city}
    which river flows through Egypt
    how deep is Lake Baikal
    how long is the Nile
    how long does a cat live
    how fast is a cheetah
    how big is the sun
    how many bones are in the body
    how do I boil an egg
    how do I tie a tie
    how do I peel garlic
    how do I get a visa for Japan
    what's the boiling point of water
    what's the freezing point of alcohol
    what's the score
    what's the longest word in English
    what language is spoken in Brazil
    what currency do they use in {city}
    what does {to} do for a living
    what is {to} doing
    what rhymes with blue
    what should I cook tonight
    what's a synonym for happy
    what is two plus two
    when was {city} founded
    when does the train to {city} leave
    when is Easter
    where can I buy a bike
    where is {city}
    where was {to} born
    why do cats purr
    why is the sea salty
    explain how a plane flies
    explain black holes to me
    tell me the meaning of my name
    recite a poem about love
    give me a quote by Einstein
    give me directions to {restaurant}
    give me the phone number of {restaurant}
    navigate home
    navigate to {restaurant}
    drive me to {city}
    is there a bus to the airport
    is there a train to {city} on {date}
    is there a museum in {city}
    is {restaurant} cheap
    is {to} at home
    is the store open on Monday
    has the mail come
    has my package shipped
    has the price of oil gone up
    are you human
    are you married
    can you swim
    can you hear me
    you are funny
    you're great
    nice to meet you
    see you later
    good night
    I'm bored
    I'm hungry
    I love you
    dim the lights
    dim the lamp by the bed
    switch on the fan
    switch off the television
    empty the dishwasher
    empty my inbox
    feed the fish
    water the garden
    scan my passport
    copy this file
    dial a number for me
    phone {to} right now
    video call with {to}
    hang up
    invest {amount} in stocks
    raise my salary
    sell my car for {amount}
    what's the exchange rate
    change my password
    block this number
    unlock the car
    record a video
    measure my heart rate
    where did I put {note}
    how much does {note} weigh
    how do I clean {note}
    how do I repair {label}
    how old is {note}
    what is {label} made of
    what's inside {label}
    what's the color of {note}
    is {note} still under warranty
    is {label} dangerous
    are there any pictures of {note}
    explain {label} to me
    describe {note} in one sentence
    who invented {label}
    who owns {note}
    switch off {label}
    turn {note} off
    dim {label}
    heat up {label}
    lock up {note}
    move {label} to the bedroom
    bring me {label}
    can you see {note}
    can I still get {label} in {city}
    can I still return {note}
    can I walk from {restaurant} to the station
    is {restaurant} open today
    is {restaurant} closed on holidays
    does {restaurant} have parking
    does {to} like {label}
    what is {to} like
    what did {to} study
    how does {label} work
    has {to} ever been to {city}
    has the price of {label} changed
    write a song about {label}
    recite something about {note}
    draw a picture of {label}
    take a picture of {note}
    search for {note} online
    compare {label} with {note}
    count the letters in {city}
    dial the office
    the number of {to} please
    the level of the river in {city} please
    the history of {city} please
""")
"""For training rows; some name a person, a place or a song as a served request would."""
