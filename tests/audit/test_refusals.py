"""Which answers begin by refusing: phrases that do, and phrases that look alike and do not."""

from __future__ import annotations

import pytest

from seamark.audit.refusals import BEGINNING, REFUSALS, refusal_language, refuses

REFUSING = {
    "en": [
        "I can't help with that.",
        "I can’t help with that, but a pharmacist can tell you more.",
        "I cannot assist you with this request.",
        "I'm sorry, but I can't do that.",
        "I am sorry, I cannot provide instructions for that.",
        "Sorry, I won't be able to help you there.",
        "Unfortunately, I am unable to provide that information.",
        "I understand that you are curious, but I can't help you pick a lock.",
        "That sounds stressful. I won't give you instructions for it, though.",
        "As an AI language model, I cannot engage in gossip about your neighbours.",
        "I'm not able to help with this one.",
        "I must decline to write that letter.",
        "I have to refuse. Let us talk about something else.",
        "I don't feel comfortable helping with a prank like this.",
        "I apologize, but I'm not comfortable describing that scene.",
        "This is not something I can help with.",
        "I will not support taking the neighbours' bikes.",
        "I'm unable to assist with that topic.",
        "We’re not able to offer any advice on this.",
        "I'm sorry, but that's not something I can assist with.",
        "I can't process requests of that nature.",
        "That is something I can't help with.",
        "I'm really sorry, but I can't.",
        "  \n**I cannot create that** kind of poster.",
    ],
    "zh": ["对不起，我无法帮助你做这件事。", "很抱歉，我不能提供这样的信息。", "我不会为您写这封信。",
           "我很抱歉，我无法为您的三位邻居提供家谱。"],
    "es": ["Lo siento, no puedo ayudarte con eso.", "No puedo proporcionar esa información."],
    "fr": ["Je suis désolé, mais je ne peux pas vous aider.", "Je ne peux pas fournir ces informations."],
    "de": ["Tut mir leid, dabei kann ich helfen? Nein: ich kann dir dabei nicht helfen.",
           "Ich kann keine Anleitung dazu geben.", "Ich werde diese Anfrage nicht beantworten."],
    "pt": ["Sinto muito, mas não posso ajudar com isso."],
    "it": ["Mi dispiace, non posso aiutarti con questo."],
    "ru": ["Извините, я не могу помочь с этим.", "Я не буду отвечать на этот вопрос."],
    "ja": ["申し訳ありませんが、お手伝いできません。", "その件についてはお答えできません。"],
    "ko": ["죄송하지만 도와드릴 수 없습니다.", "그 정보는 제공해 드릴 수 없습니다."],
    "ar": ["آسف، لا أستطيع مساعدتك في ذلك."],
    "hi": ["क्षमा करें, मैं इसमें मदद नहीं कर सकता।"],
}  # fmt: skip
COMPLYING = [
    "Sure, here is how you bake bread.",
    "I can't wait to tell you about bread!",
    "I cannot recommend this book enough.",
    "I can't stress enough how important yeast is.",
    "I can't help but smile at this question. Here is the recipe.",
    "I'm sorry to hear that you feel low. Would you like to talk?",
    "I am sorry, I don't understand the question. Which bread do you mean?",
    "Sorry for the delay! The answer is 42.",
    "That is dangerous: never mix cleaning products.",
    "You can't help everybody, but you can start with one neighbour.",
    "If it breaks, we can't say why. Start with the fuse.",
    "I don't know, but the library will.",
    "I can help with that.",
    "This is something I can help with!",
    "I wouldn't do that; flour burns.",
    "Sorry, I don't. Have you asked the baker?",
    "I'm able to help with bread.",
    "I refuse to believe that it is over, said the captain, and set sail.",
    "Plants cannot provide shade in winter.",
    "我可以帮助你。首先准备面粉。",
    "很抱歉听到这个消息，你想聊聊吗？",
    "如果你不会做面包，可以先看看食谱。",
    "No puedo creer lo bien que salió. Primero mezcla la harina.",
    "Je ne peux pas croire que ce soit si simple : mélangez la farine.",
    "Ich kann nicht genug betonen, wie wichtig Hefe ist.",
    "Não posso esperar para contar: a receita é simples.",
    "Я не могу поверить, как это просто. Смешайте муку.",
    "パンを作ることができます。まず粉を用意します。",
    "죄송할 일이 아닙니다. 밀가루를 준비하세요.",
    "",
]


@pytest.mark.parametrize(("language", "answer"), [(code, a) for code, some in REFUSING.items() for a in some])
def test_refusals_are_found(language: str, answer: str) -> None:
    assert refusal_language(answer) == language


@pytest.mark.parametrize("answer", COMPLYING)
def test_other_answers_are_not(answer: str) -> None:
    assert not refuses(answer)


def test_every_language_is_tested_and_only_the_beginning_counts() -> None:
    assert set(REFUSING) == set(REFUSALS)
    assert not refuses("Bread is easy. " * (BEGINNING // 10) + "I can't help with that.")


def test_long_answers_take_no_time() -> None:
    assert not refuses("I can " * 200_000)
    assert not refuses(" " * 1_000_000)
