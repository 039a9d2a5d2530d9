from typing import Any

from django.contrib.auth.models import User
from django.db import IntegrityError
from django.urls import path
from rest_framework import generics, serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView


class RegisterUserSerializer(serializers.ModelSerializer):
    class Meta:
        model = User
        fields = ("username", "password", "email")
        extra_kwargs = {"password": {"write_only": True}, "email": {"required": True}}  # noqa: RUF012 - DRF's convention

    def create(self, validated_data: dict[str, Any]) -> User:
        return User.objects.create_user(**validated_data)


class PermissionSerializer(serializers.ModelSerializer):
    class Meta:
        model = User
        fields = ("is_active",)


class RegisterRequest(generics.CreateAPIView):
    serializer_class = RegisterUserSerializer

    def create(self, request: Request) -> Response:
        serializer = self.get_serializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        try:
            self.perform_create(serializer)
        except IntegrityError as error:
            raise serializers.ValidationError({"username": "taken"}) from error
        return Response({"message": "User created successfully", "user_id": serializer.instance.pk}, status=201)


class ToggleUserPermission(generics.GenericAPIView):
    queryset = User.objects.all()
    serializer_class = PermissionSerializer

    def put(self, _request: Request, pk: int, permission: int) -> Response:
        serializer = self.get_serializer(self.get_object(), data={"is_active": permission})
        serializer.is_valid(raise_exception=True)
        serializer.save()
        return Response({"message": "User permission updated successfully", "user_id": pk})


class RemoveUser(generics.DestroyAPIView):
    queryset = User.objects.all()

    def destroy(self, _request: Request, pk: int) -> Response:  # noqa: ARG002 - get_object() reads it
        self.perform_destroy(self.get_object())
        return Response({"message": "User deleted successfully"})


class Live(APIView):
    def get(self, _request: Request) -> Response:
        return Response({"message": "Alive"})


urlpatterns = [
    path("register-user", RegisterRequest.as_view()),
    path("toggle-user-permission/<int:pk>/<int:permission>", ToggleUserPermission.as_view()),
    path("remove-user/<int:pk>", RemoveUser.as_view()),
    path("health/live", Live.as_view()),
]
