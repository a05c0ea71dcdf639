-- llm_choose
SELECT rank, choice, round(probability::numeric, 2) AS probability, tokens
FROM llm_choose('Many hands make light', '{" work."," cooks."," worm."}');

-- llm_classify
SELECT llm_classify('The early bird catches the', '{" work."," worm."," broth."}');
-->  worm.

-- llm_choose_from
CREATE TABLE ending (body text);
INSERT INTO ending VALUES (' work.'), (' worm.'), (' broth.');
SELECT choice FROM llm_choose_from('Too many cooks spoil the', 'SELECT body FROM ending', 'tokens') WHERE rank = 1;
-->  broth.

-- llm_choose_rows
CREATE TABLE saying (id integer, body text);
INSERT INTO saying VALUES (1, 'The early bird catches the'), (2, 'Too many cooks spoil the'), (3, NULL);
SELECT key, choice FROM llm_choose_rows('SELECT id, body FROM saying ORDER BY id', '{" work."," worm."," broth."}');
--> 1| worm.
--> 2| broth.
--> 3|

-- llm_evaluate_choices
CREATE TABLE held_out (prompt text, answer text);
INSERT INTO held_out VALUES ('The early bird catches the', ' worm.'), ('Too many cooks spoil the', ' broth.'), ('Many hands make light', ' worm.');
SELECT accuracy, n FROM llm_evaluate_choices('SELECT prompt, answer FROM held_out', '{" work."," worm."," broth."}');
--> 0.6666666666666666|3
SELECT c.* FROM llm_evaluate_choices('SELECT prompt, answer FROM held_out', '{" work."," worm."," broth."}'), unnest(confusion) AS c;
-->  broth.| broth.|1
-->  worm.| work.|1
-->  worm.| worm.|1
