from surgenet_hf.data.splits import split_by_name


def test_the_split_by_names_is_the_same_everywhere():
    split = split_by_name([f"{letter}_op" for letter in "abcde"], "here")
    # same expectation as in test_folder
    assert {video for video, part in split.items() if part == "validation"} == {"e_op"}
    assert sum(part == "validation" for part in split_by_name(map(str, range(20)), "here").values()) == 4
