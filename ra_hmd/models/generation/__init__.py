"""Text generation: chats, and the engines that answer them."""
